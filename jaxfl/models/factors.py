"""Factors of users and items, for ratings: the user is the client."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxfl.models.model import Model, _linen


class _User(nn.Module):
    """What one user adds: a bias, and a taste for the factors."""

    rank: int

    @nn.compact
    def __call__(self, z: Float[Array, "..."]) -> Float[Array, " b"]:
        bias = self.param("bias", nn.initializers.zeros, ())
        if not self.rank:
            return jnp.broadcast_to(bias, len(z))
        return bias + z @ self.param("taste", nn.initializers.normal(0.1), (self.rank,))


class Factors(nn.Module):
    """A bias for every item, and factors that the client's taste weighs."""

    items: int
    rank: int

    @nn.compact
    def __call__(self, x: Int[Array, " b"]) -> Float[Array, "b 1"]:
        small = nn.initializers.normal(0.1)
        bias = self.param("bias", nn.initializers.zeros, (self.items,))[x]
        z = self.param("items", small, (self.items, self.rank))[x] if self.rank else bias
        return (bias + _User(self.rank, name="head")(z))[:, None]


def factors(items: int, rank: int = 0) -> Model:
    """Matrix factorisation of ratings: y = b_item + b_user + <p_item, q_user>.

    The client is the user: `head/*` is its own, so that `algorithms.FedPer` trains biases and
    tastes at home, and shares what is known of items.

    Args:
        items: number of items; x is their numbers, `[B]`.
        rank: number of factors; 0 for biases alone, which is hard to beat.

    Raises:
        ValueError: no items, or a negative rank.

    Source: Koren, Bell, Volinsky, "Matrix Factorization Techniques for Recommender Systems",
        Computer 2009; reconstructed from memory.

    Example:
        >>> model = models.factors(items=100, rank=2)
        >>> sum(leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0))))
        303
    """
    if items < 1 or rank < 0:
        raise ValueError(
            f"items must be 1 or more, rank 0 or more; got {items} and {rank}: items=100, rank=2"
        )
    return _linen("factors", Factors(items, rank), (), "int32")
