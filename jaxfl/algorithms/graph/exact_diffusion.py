"""Exact diffusion and D2."""

import math
from functools import lru_cache
from typing import ClassVar, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from optax import tree

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs, matrix
from jaxfl.engine.fields import hyper
from jaxfl.networks import Graph
from jaxfl.types import Scalar, Stacked


@lru_cache(8)  # a large graph takes longer than some runs on it
def _least(w):
    """The least eigenvalue of the symmetric part of a matrix, from its bytes."""
    w = np.frombuffer(w)
    w = w.reshape(math.isqrt(w.size), -1)
    return np.linalg.eigvalsh((w + w.T) / 2).min()


def _spectrum(alg, network):
    w = matrix(network)
    if w is None or isinstance(alg.lazy, Tracer):
        return
    least = _least(w.tobytes())
    got = np.min((1 - np.asarray(alg.lazy, float)) * least + np.asarray(alg.lazy, float))
    if got <= -1 / 3 + 1e-9:
        raise ValueError(
            f"ExactDiffusion needs (1 - lazy) W + lazy I to have its least eigenvalue above -1/3, "
            f"got {got:.4g}; use a lazier matrix: `ExactDiffusion(lr=..., lazy=0.5)`"
        )


@struct.dataclass
class ExactDiffusion:
    """Diffusion with a correction that removes its bias: adapt, correct, combine.

    psi+ = x - lr g(x);  phi = psi+ + x - psi;  x <- Wbar phi,  Wbar = (1 - lazy) W + lazy I,
    starting at psi = x0.

    Use: heterogeneous nodes on a fixed graph, at half the messages of gradient tracking.

    Args:
        lr: learning rate, > 0, traced.
        lazy: in [0, 1], traced; 1/2 is exact diffusion, 0 is D2 (NIDS).
    State: params [n, ...], psi [n, ...]; memory 2 n d.
    Needs: Graph nets, static, lossless, doubly stochastic; the least eigenvalue of Wbar above -1/3.
    Sent: up 32 d times the out-degree, down times the in-degree, bits per node and round, in
        float32.
    Equals: with lazy = 0, x+ = W (2 x - x_before - lr (g - g_before)).
    Raises: ValueError at a least eigenvalue of Wbar at or below -1/3, where D2 diverges.
    Deviations: none; the learning rate must stay constant, as in the published code.
    Source: Yuan, Ying, Zhao, Sayed, "Exact Diffusion for Distributed Optimization and Learning -
        Part I: Algorithm Development", IEEE Transactions on Signal Processing 2019; Tang, Lian,
        Yan, Zhang, Liu, "D2: Decentralized Training over Decentralized Data", ICML 2018, arXiv
        1803.07068 (lazy = 0); the codes of Bluefog and RelaySGD were read.
    Example:
        >>> print(jaxfl.grid(algorithms.ExactDiffusion, lr=[0.1, 0.3, 1.0]).lr)
        [0.1 0.3 1. ]
    """

    lr: Scalar = hyper(tune=True)
    lazy: Scalar = hyper(0.5, high=1.0)
    needs: ClassVar[Needs] = Needs(
        Graph, static=True, lossless=True, rows=True, columns=True, check=_spectrum
    )

    class State(NamedTuple):
        params: Stacked  # x    [n, ...]
        psi: Stacked  # psi  [n, ...]  the last adapted iterate

    def init(self, params, clients, key):
        return self.State(clients.rows(params), clients.rows(params))

    def round(self, state, clients, net, key):
        x, psi = state
        g, work = clients.grads(x, key)
        new = tree.add_scale(x, -self.lr, g)
        phi = jax.tree.map(lambda new, x, psi: new + x - psi, new, x, psi)
        lazy = lambda mixed, phi: (1 - self.lazy) * mixed + self.lazy * phi
        x = jax.tree.map(lazy, net.mix(phi, key), phi)
        size = comm.bits(x) / clients.n
        return self.State(x, new), net.info(work, up=size, down=size)
