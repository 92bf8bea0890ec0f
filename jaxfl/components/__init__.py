"""What a field of an algorithm holds: aggregators, compressors, oracles, solvers."""

from jaxfl.components.adapters import Everything, Private
from jaxfl.components.aggregators import nearest_neighbours
from jaxfl.components.compressors import EF, QSGD, RandK, TopK
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
from jaxfl.components.solvers import SGD, Clipped, Momentum, Optax, fit, live_steps, train
from jaxfl.engine.parts import Identity, Mean, NoPrivacy
