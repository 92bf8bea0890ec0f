"""Language models over integer tokens [B, T], predicting the next token at every position.

Embeddings and kernels are drawn LeCun-normal, recurrent kernels orthogonal, biases zero (one for
the LSTM's forget gate). The last layer is called `head`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from jaxfl.models.dense import Dense
from jaxfl.models.model import Model, _linen

Tokens = Int[Array, "b t"]
Logits = Float[Array, "b *t v"]


class LSTM(nn.Module):
    """A long short-term memory over [B, T, in]: hidden states [B, T, features].

    The inputs' products are one matmul before the scan, which keeps the recurrent one. Gates lie
    side by side in the kernels: input, forget, cell, output.

    Example:
        >>> layer = models.LSTM(8)
        >>> make = layer.init_with_output
        >>> hidden, _ = jax.eval_shape(make, jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> hidden.shape
        (2, 5, 8)
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t o"]:
        h, init = self.features, nn.initializers
        recurrent = self.param("recurrent", _gates(init.orthogonal()), (h, 4 * h), float)
        kernel = self.param("kernel", init.lecun_normal(), (x.shape[-1], 4 * h), float)
        bias = self.param("bias", _forget, (4 * h,), float)
        drive = jnp.tensordot(x.astype(kernel.dtype), kernel, 1) + bias.reshape(1, 1, -1)

        def step(carry, drive):
            hidden, cell = carry
            i, f, g, o = jnp.split(drive + hidden @ recurrent, 4, -1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            hidden = nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        start = jnp.zeros((len(x), h), drive.dtype)
        _, states = lax.scan(step, (start, start), drive.swapaxes(0, 1))
        return states.swapaxes(0, 1)


def _forget(key, shape, dtype):
    return jnp.zeros((4, shape[0] // 4), dtype).at[1].set(1).reshape(-1)


def _gates(init):
    """One orthogonal matrix per gate: [h, 4h]."""

    def draw(key, shape, dtype):
        keys = jax.random.split(key, 4)
        return jnp.concatenate([init(k, (shape[0], shape[0]), dtype) for k in keys], 1)

    return draw


class RecurrentLM(nn.Module):
    """Embedding, LSTM layers, a linear projection if asked for, logits."""

    vocab: int
    embed: int
    hidden: tuple[int, ...]
    project: int | None
    every: bool

    @nn.compact
    def __call__(self, x: Tokens) -> Logits:
        x = nn.Embed(self.vocab, self.embed, param_dtype=float, name="embed")(x)
        for i, width in enumerate(self.hidden):
            x = LSTM(width, name=f"lstm{i + 1}")(x)
        x = x if self.every else x[:, -1]
        x = Dense(self.project, name="project")(x) if self.project else x
        return Dense(self.vocab, name="head")(x)


class Transformer(nn.Module):
    """Causal self-attention: normalisation first, learned positions, untied logits."""

    vocab: int
    width: int
    layers: int
    heads: int
    hidden: int
    length: int
    every: bool

    @nn.compact
    def __call__(self, x: Tokens) -> Logits:
        b, t = x.shape
        if t > self.length:
            raise ValueError(f"x: expected at most {self.length} tokens, got {t}. Use length={t}.")
        embed = nn.Embed(self.vocab, self.width, param_dtype=float, name="embed")
        place = self.param("place", nn.initializers.normal(0.02), (self.length, self.width), float)
        x = embed(x) + place[None, :t]
        for i in range(1, self.layers + 1):
            y = _norm(f"norm{i}a")(x)
            q, k, v = jnp.split(Dense(3 * self.width, name=f"attend{i}")(y), 3, -1)
            q, k, v = (a.reshape(b, t, self.heads, -1) for a in (q, k, v))
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + Dense(self.width, name=f"mix{i}")(y.reshape(b, t, -1))
            y = nn.gelu(Dense(self.hidden, name=f"up{i}")(_norm(f"norm{i}b")(x)))
            x = x + Dense(self.width, name=f"down{i}")(y)
        x = _norm("norm")(x)
        return Dense(self.vocab, name="head")(x if self.every else x[:, -1])


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, param_dtype=float, name=name)


def char_lstm(vocab: int = 80, length: int = 80, every: bool = True) -> Model:
    """LEAF's Shakespeare network (embedding 8, LSTM 256 twice): 817,872 parameters for 80 tokens.

    Args:
        vocab: number of tokens.
        length: tokens per example; no parameter depends on it.
        every: logits [B, T, V] at every position; if False, [B, V] after the last.

    Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv 2018.

    Example:
        >>> params = jax.eval_shape(models.char_lstm().init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        817872
    """
    return _linen("char_lstm", RecurrentLM(vocab, 8, (256, 256), None, every), (length,), "int32")


def word_lstm(vocab: int = 10004, length: int = 20, every: bool = True) -> Model:
    """Stack Overflow's next-word network (embedding 96, LSTM 670, 96): 4,050,748 parameters.

    Args:
        vocab: number of tokens, the 4 special ones among them.
        length: tokens per example; no parameter depends on it.
        every: logits [B, T, V] at every position; if False, [B, V] after the last.

    Source: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated
        Optimization", ICLR 2021, arXiv 2003.00295.

    Example:
        >>> params = jax.eval_shape(models.word_lstm().init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        4050748
    """
    return _linen("word_lstm", RecurrentLM(vocab, 96, (670,), 96, every), (length,), "int32")


def transformer(
    vocab: int = 80,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    hidden: int = 256,
    length: int = 80,
    every: bool = True,
) -> Model:
    """A small causal transformer: 115,536 parameters; the literature has no canonical one.

    Args:
        vocab: number of tokens.
        width: of the residual stream, a multiple of `heads`.
        layers: attention and dense layers.
        heads: per attention.
        hidden: width of the dense layers.
        length: most tokens per example.
        every: logits [B, T, V] at every position; if False, [B, V] after the last.

    Raises:
        ValueError: if `heads` does not divide `width`.

    Example:
        >>> params = jax.eval_shape(models.transformer().init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        115536
    """
    if width % heads:
        raise ValueError(f"heads: expected a divisor of width {width}, got {heads}. Use heads=1.")
    module = Transformer(vocab, width, layers, heads, hidden, length, every)
    return _linen("transformer", module, (length,), "int32")
