"""What the outside world does: graphs and weights, cohorts, clocks, adversaries, channels."""

from jaxfl.comm import Dense, Near, Shifts
from jaxfl.networks.adversaries import (
    ALIE,
    IPM,
    Dissensus,
    GaussianNoise,
    Honest,
    Noisy,
    Perfect,
    Send,
    SignFlip,
    alie_z,
)
from jaxfl.networks.cohorts import (
    Available,
    Bernoulli,
    Cyclic,
    Drop,
    Everyone,
    Uniform,
    Weighted,
    label_rates,
    markov,
)
from jaxfl.networks.graphs import GRAPHS
from jaxfl.networks.nets import Arrivals, Cohort, Events, Graph, Links, Messages
from jaxfl.networks.spectra import chi1, chi2, gap, mixing_time
from jaxfl.networks.timelines import (
    Timeline,
    alike,
    arrivals,
    dadao_rates,
    from_events,
    from_messages,
    gossip,
    poisson,
    to_events,
)
from jaxfl.networks.topologies import (
    TIME_VARYING,
    Attacked,
    Churn,
    LinkFailures,
    Periodic,
    Quorum,
    RandomMatching,
    RandomOut,
    Static,
    first,
    from_matrix,
    graph,
    mixing,
    periodic,
)
from jaxfl.networks.weights import WEIGHTS, lazy
