"""Everything that has a name, by kind."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

# Registries that are not at home elsewhere -----------------------------------------------------


def components() -> dict[str, Callable]:
    """What options may name: solvers, aggregators, compressors, mechanisms, masks."""
    from jaxfl import components

    parts = vars(components).items()
    return {name.lower(): part for name, part in parts if inspect.isclass(part)}


def partitioners() -> dict[str, Callable]:
    """How data may be split among clients."""
    from jaxfl import data

    names = ("iid", "dirichlet", "shards", "labels_per_client", "quantity", "natural")
    return {name: getattr(data, name) for name in names}


def adversaries() -> dict[str, Callable]:
    """What Byzantine clients may send."""
    from jaxfl import networks

    names = ("SignFlip", "GaussianNoise", "ALIE", "IPM", "Dissensus")
    return {name.lower(): getattr(networks, name) for name in names}


def topologies() -> dict[str, Callable]:
    """Graphs: fixed ones, schedules, and the one that is drawn anew every round."""
    from jaxfl.networks import RandomOut, graphs

    return {**graphs.GRAPHS, **graphs.SCHEDULES, "random_out": RandomOut}


def made(maker: Any) -> Any:
    """The class of what a maker makes: itself, or what it says that it returns; else the maker."""
    if not inspect.isfunction(maker):
        return maker
    found = typing.get_type_hints(maker).get("return")
    return found if hasattr(found, "round") else maker


def registries() -> dict[str, dict[str, Any]]:
    """Everything that has a name on the command line, by kind."""
    from jaxfl import data, models
    from jaxfl.algorithms import ALGORITHMS
    from jaxfl.networks import weights

    return {
        "algorithms": dict(ALGORITHMS),
        "data": dict(data.DATASETS),
        "partitions": partitioners(),
        "models": dict(models.MODELS),
        "graphs": topologies(),
        "weights": dict(weights.WEIGHTS),
        "adversaries": adversaries(),
        "components": components(),
    }
