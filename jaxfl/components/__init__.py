"""What a field of an algorithm holds: aggregators, compressors, oracles, solvers."""

from jaxfl.components.adapters import Everything, Private, Shared
from jaxfl.components.aggregators import (
    NNM,
    CenteredClipping,
    ClippedGossip,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    NearestNeighbours,
    TrimmedMean,
    median,
    trimmed_mean,
)
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
from jaxfl.components.privacy import Gaussian, claim, epsilon
from jaxfl.components.solvers import SGD, Clipped, Momentum, Optax, fit, live_steps, train
from jaxfl.engine.parts import Identity, Mean, NoPrivacy
