"""Dense layers, and the classifiers made of them."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Num

from jaxfl.models.model import Model, _linen

# Outputs that are few; numbers in a kernel of few outputs up to which its gradient is a sum of
# products instead of a matrix product; outputs up to which each is a product with a vector.
# Measured on the CPU.
_FEW, _TINY, _ROWS = 32, 1024, 4


class Dense(nn.Module):
    """Multiply [..., in] by a kernel and add a bias, in the dtype of the kernel.

    The one place where dense layers multiply. The kernel is `[out, in]`, as in PyTorch and unlike
    flax's: JAX makes its gradient so, and a step would transpose it otherwise.

    Args:
        features: outputs.

    Example:
        >>> found = jax.eval_shape(models.Dense(64).init, jax.random.key(0), jnp.ones((2, 10)))
        >>> found["params"]["kernel"].shape, found["params"]["bias"].shape
        ((64, 10), (64,))
    """

    features: int

    @nn.compact
    def __call__(self, x: Num[Array, "... i"]) -> Num[Array, "... o"]:
        shape = (self.features, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(-1, -2), shape, float)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), float)
        x = x.astype(kernel.dtype)
        if self.features > min(_FEW, x.shape[-1]) or jax.default_backend() != "cpu":
            product = _product
        elif self.features <= _ROWS:
            product = _by_rows
        else:
            product = _tiny if kernel.size <= _TINY else _few
        y = product(kernel, x)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _product(kernel, x):
    return jnp.tensordot(x, kernel, (-1, 1))


def _few(kernel, x):
    # The transpose is of outputs and their gradient, which are small. XLA would turn it into one of
    # the factors, for which the gradient's product is slower.
    y = jnp.tensordot(kernel, x, (1, -1))
    return jnp.moveaxis(jax.lax.optimization_barrier(y), 0, -1)


def _by_rows(kernel, x):
    # XLA packs the operands of a product of matrices, which costs more than so few outputs
    return jnp.stack([x @ row for row in kernel], -1)


@jax.custom_jvp
def _tiny(kernel, x):
    return _few(kernel, x)


@_tiny.defjvp
def _(at, by):
    # The gradient by the kernel becomes a sum over examples fused with what follows, where a
    # product of matrices costs microseconds for every client.
    (kernel, x), (dkernel, dx) = at, by
    return _tiny(kernel, x), (
        x[..., None, :] * dkernel.reshape(*(1,) * (x.ndim - 1), *dkernel.shape)
    ).sum(-1) + _few(kernel, dx)


class MLP(nn.Module):
    """Dense layers with ReLU between them, on examples flattened to [B, inputs]."""

    hidden: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, x: Num[Array, "b ..."]) -> Num[Array, "b c"]:
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.hidden):
            x = nn.relu(Dense(width, name=f"dense{i + 1}")(x))
        return Dense(self.classes, name="head")(x)


def logistic(inputs: int, classes: int) -> Model:
    """Multinomial logistic regression (linear outputs; with `squared_error`, linear regression).

    Args:
        inputs: numbers per example, flattened.
        classes: outputs.

    Example:
        >>> model = models.logistic(4, 3)
        >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 4))).shape
        (2, 3)
    """
    return _linen("logistic", MLP((), classes), (inputs,))


def mlp(inputs: int, classes: int, hidden: tuple[int, ...] = (64,)) -> Model:
    """A ReLU network; `mlp(784, 10, (200, 200))` is the 2NN of McMahan et al. (2017).

    Args:
        inputs: numbers per example, flattened.
        classes: outputs.
        hidden: widths of the hidden layers.

    Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of
        Deep Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629.

    Example:
        >>> params = jax.eval_shape(models.mlp(784, 10, (200, 200)).init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        199210
    """
    return _linen("mlp", MLP(tuple(hidden), classes), (inputs,))
