"""The algorithms, one file each, and their registry by lower-case name."""

from jaxfl.algorithms.asynchronous.dadao import DADAO
from jaxfl.algorithms.asynchronous.fedbuff import FedBuff
from jaxfl.algorithms.asynchronous.gossip_learning import GossipLearning
from jaxfl.algorithms.graph.choco import Choco
from jaxfl.algorithms.graph.dsgd import DSGD
from jaxfl.algorithms.graph.exact_diffusion import ExactDiffusion
from jaxfl.algorithms.graph.gradient_tracking import GradientTracking
from jaxfl.algorithms.graph.monna import MoNNA
from jaxfl.algorithms.graph.sgp import SGP
from jaxfl.algorithms.personal.ditto import Ditto
from jaxfl.algorithms.personal.local_only import Local
from jaxfl.algorithms.personal.shared_leaves import FedBN, FedPer, LGFedAvg
from jaxfl.algorithms.server.fedavg import FedAvg, FedAvgM
from jaxfl.algorithms.server.fedcm import FedCM, MoFedSAM
from jaxfl.algorithms.server.feddyn import FedDyn
from jaxfl.algorithms.server.fedexp import FedExP
from jaxfl.algorithms.server.fedopt import FedAdagrad, FedAdam, FedOpt, FedYogi
from jaxfl.algorithms.server.fedprox import FedProx
from jaxfl.algorithms.server.fedsam import FedSAM
from jaxfl.algorithms.server.scaffold import Scaffold

ALGORITHMS = {
    a.__name__.lower(): a
    for a in (
        FedAvg,
        FedAvgM,
        FedProx,
        FedOpt,
        FedAdagrad,
        FedAdam,
        FedYogi,
        Scaffold,
        FedDyn,
        FedCM,
        FedSAM,
        MoFedSAM,
        FedExP,
        Ditto,
        FedPer,
        LGFedAvg,
        FedBN,
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
