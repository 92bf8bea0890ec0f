"""The algorithms, one file each, and their registry by lower-case name."""

from jaxfl.algorithms.choco import Choco
from jaxfl.algorithms.dadao import DADAO
from jaxfl.algorithms.ditto import Ditto
from jaxfl.algorithms.dsgd import DSGD
from jaxfl.algorithms.exact_diffusion import ExactDiffusion
from jaxfl.algorithms.fedavg import FedAvg
from jaxfl.algorithms.fedbuff import FedBuff
from jaxfl.algorithms.fedopt import FedAdagrad, FedAdam, FedOpt, FedYogi
from jaxfl.algorithms.fedprox import FedProx
from jaxfl.algorithms.gossip_learning import GossipLearning
from jaxfl.algorithms.gradient_tracking import GradientTracking
from jaxfl.algorithms.local_only import Local
from jaxfl.algorithms.monna import MoNNA
from jaxfl.algorithms.scaffold import Scaffold
from jaxfl.algorithms.sgp import SGP

ALGORITHMS = {
    a.__name__.lower(): a
    for a in (
        FedAvg,
        FedProx,
        FedOpt,
        FedAdagrad,
        FedAdam,
        FedYogi,
        Scaffold,
        Ditto,
        Local,
        DSGD,
        GradientTracking,
        ExactDiffusion,
        SGP,
        Choco,
        FedBuff,
        DADAO,
        GossipLearning,
        MoNNA,
    )
}
