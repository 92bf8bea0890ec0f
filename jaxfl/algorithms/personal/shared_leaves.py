"""FedAvg on some leaves of a model, the others at home: FedPer, LG-FedAvg, FedBN."""

from typing import Any

from jaxfl.algorithms.server.fedavg import FedAvg
from jaxfl.components.adapters import Private, Shared
from jaxfl.types import Scalar


def FedPer(lr: Scalar, **fields: Any) -> FedAvg:
    """FedAvg on the body of the model, while every client keeps a head of its own.

    (b_i, h_i) <- K local steps (b_i, h_i) - lr g_i(b_i, h_i) from (b, h_i);
    b <- b + server_lr sum_i p_i (b_i - b);  h_i stays with client i.

    Use: clients whose labels mean different things; a body that many share needs less data each.

    Args:
        fields: others of `FedAvg`; of a model of your own, `mask=Private("your/head/*")`.
    State: params [...], of which the head is as it began; own h [n, ...]; memory d + n |h|.
    Needs: Cohort nets.
    Sent: up 32 |b|, down 32 |b| bits per participating client and round, in float32.
    Equals: FedAvg without a head; local training without a body.
    Deviations: none.
    Source: Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization
        Layers", arXiv 2019, arXiv 1912.00818; third-party code was read.
    Example:
        >>> algorithms.FedPer(lr=0.1, steps=5).mask
        Private(pattern='head/*')
    """
    return FedAvg(lr=lr, **{"mask": Private("head/*"), **fields})


def LGFedAvg(lr: Scalar, **fields: Any) -> FedAvg:
    """FedAvg on the head of the model, while every client keeps a body of its own.

    (b_i, h_i) <- K local steps (b_i, h_i) - lr g_i(b_i, h_i) from (b_i, h);
    h <- h + server_lr sum_i p_i (h_i - h);  b_i stays with client i.

    Use: clients whose inputs look different; small messages.

    Args:
        fields: others of `FedAvg`; of a model of your own, `mask=Shared("your/head/*")`.
    State: params [...], of which the body is as it began; own b [n, ...]; memory d + n |b|.
    Needs: Cohort nets.
    Sent: up 32 |h|, down 32 |h| bits per participating client and round, in float32.
    Equals: FedPer with the other leaves.
    Deviations: starts where all start; the paper starts from a model that FedAvg trained.
    Source: Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, "Think Locally, Act
        Globally: Federated Learning with Local and Global Representations", arXiv 2020,
        arXiv 2001.01523; third-party code was read.
    Example:
        >>> algorithms.LGFedAvg(lr=0.1).mask
        Shared(pattern='head/*')
    """
    return FedAvg(lr=lr, **{"mask": Shared("head/*"), **fields})


def FedBN(lr: Scalar, **fields: Any) -> FedAvg:
    """FedAvg on all but the normalisation layers, of which every client keeps its own.

    x_i <- K local steps x_i - lr g_i(x_i) from x, with the scales and biases of client i;
    x <- x + server_lr sum_i p_i (x_i - x), but for these.

    Use: clients whose inputs are scaled or shifted against each other.

    Args:
        fields: others of `FedAvg`; of a model of your own, `mask=Private("*bn*")`.
    State: params [...]; own scales and biases [n, ...]; memory d + n |own|.
    Needs: Cohort nets.
    Sent: up 32 (d - |own|), down as many bits per participating client and round, in float32.
    Equals: FedPer with other leaves.
    Deviations: the models of `jaxfl.models` normalise by groups or layers, without the batches'
        statistics that the paper keeps at home as well: personal are scales and biases.
    Source: Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local
        Batch Normalization", ICLR 2021, arXiv 2102.07623; third-party code was read.
    Example:
        >>> algorithms.FedBN(lr=0.1).mask
        Private(pattern='*norm*')
    """
    return FedAvg(lr=lr, **{"mask": Private("*norm*"), **fields})
