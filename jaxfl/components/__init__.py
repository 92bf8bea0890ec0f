"""What a field of an algorithm holds: aggregators, compressors, oracles, solvers."""

from jaxfl.components.aggregators import nearest_neighbours
from jaxfl.components.compressors import QSGD, Identity, RandK, TopK
from jaxfl.components.oracles import (
    blended,
    clipped,
    noised,
    norm,
    proximal,
    sam,
    shifted,
    zeroth_order,
)
from jaxfl.components.solvers import SGD, Momentum, Optax, live_steps, train
