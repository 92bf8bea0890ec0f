"""Everything that has a name, by kind."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

# Registries that are not at home elsewhere -----------------------------------------------------


def components() -> dict[str, Callable]:
    """What options may name: solvers, compressors, robust rules."""
    from jaxfl.components import aggregators as robust
    from jaxfl.components import compressors as compress
    from jaxfl.components import solvers as local

    return {
        name.lower(): thing
        for module in (local, compress, robust)
        for name, thing in vars(module).items()
        if inspect.isclass(thing) and thing.__module__ == module.__name__ and name[0].isupper()
    }


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
    from jaxfl.networks import graphs, weights
    from jaxfl.studies.registry import adversaries, components, partitioners

    return {
        "algorithms": dict(ALGORITHMS),
        "data": dict(data.DATASETS),
        "partitions": partitioners(),
        "models": dict(models.MODELS),
        "graphs": {**graphs.GRAPHS, **graphs.SCHEDULES},
        "weights": dict(weights.WEIGHTS),
        "adversaries": adversaries(),
        "components": components(),
    }
