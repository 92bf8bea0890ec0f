"""What the outside world does: graphs and weights, cohorts, clocks, adversaries, channels."""

from jaxfl.engine.mixing import Dense, Near, Shifts
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
from jaxfl.networks.buffers import arrivals
from jaxfl.networks.clocks import dadao_rates, from_events, poisson, to_events
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
from jaxfl.networks.facts import mixing_facts
from jaxfl.networks.failures import Attacked, Churn, LinkFailures, first
from jaxfl.networks.graphs import GRAPHS
from jaxfl.networks.messages import from_messages, gossip
from jaxfl.networks.nets import Arrivals, Cohort, Events, Graph, Links, Messages
from jaxfl.networks.spectra import chi1, chi2, gap, mixing_time
from jaxfl.networks.timelines import Timeline, alike
from jaxfl.networks.topologies import (
    TIME_VARYING,
    Periodic,
    Quorum,
    RandomMatching,
    RandomOut,
    Static,
    from_matrix,
    mixing,
    periodic,
    topology,
)
from jaxfl.networks.weights import WEIGHTS, lazy
