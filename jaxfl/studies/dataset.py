"""The result of a sweep as one labelled data set; comparisons have its names too."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfl.studies import experiment
from jaxfl.studies.config import long_name

if TYPE_CHECKING:
    import xarray

STATUS = ("complete", "target", "patience", "diverged")

# name in a record: (name in the result with {m} for the metric, long name, unit)
VARIABLES = {
    "score": ("{m}", "test score on all labels", "1"),
    "own_score": ("own_{m}", "test score on clients' own labels", "1"),
    "personal_score": ("personal_{m}", "test score of the personal models on all labels", "1"),
    "valid_score": ("valid_{m}", "validation score on all labels", "1"),
    "valid_own_score": ("valid_own_{m}", "validation score on clients' own labels", "1"),
    "choice": ("valid_choice", "validation score that chooses", "1"),
    "loss": ("loss", "test loss on all labels", "1"),
    "own_loss": ("own_loss", "test loss on clients' own labels", "1"),
    "worst": ("worst", "test score on own labels of the worst tenth of the clients", "1"),
    "clients": ("client_{m}", "last test score of each client on its own labels", "1"),
    "consensus": ("consensus", "mean squared distance to the mean model", "1"),
    "train_loss": ("train_loss", "training loss since the last evaluation", "1"),
    "megabytes": ("megabytes", "sent and received so far, all clients", "MB"),
    "grads": ("grads", "minibatch gradients so far, all clients", "1"),
    "seconds": ("seconds", "simulated time so far", "s"),
    "status": ("status", "how the run ended", "1"),
    "stopped": ("stopped", "last round of the run", "1"),
}
DIMENSIONS: dict[str, tuple[str, ...]] = {"clients": ("client",), "status": (), "stopped": ()}
FLAGS = {"flag_values": np.arange(len(STATUS), dtype=np.int8), "flag_meanings": " ".join(STATUS)}


def dataset(made: Any, results: list[Any], stop: Any, provenance: Any) -> "xarray.Dataset":
    """The result of a sweep from those of its chunks.

    Args:
        made: the plan.
        results: of the chunks, arrays `[runs, ...]` by name.
        stop: when runs leave.
        provenance: where the numbers come from, JSON.
    """
    import xarray as xr

    config, axes = made.space.config, made.space.axes
    metric = made.task.metric
    order = np.concatenate([made.groups[c.group].runs[c.places] for c in made.chunks])
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    where = place[made.where]
    variables = {}
    for name, (label, words, unit) in VARIABLES.items():
        rows = [found.get(name) for found in results]
        if all(row is None for row in rows):
            continue
        if name == "choice" and all(_equal(f["choice"], f["valid_score"]) for f in results):
            continue  # no personal models
        dims = DIMENSIONS.get(name, ("round",))
        size = tuple(
            {"client": made.clients, "round": config.rounds // config.every}[d] for d in dims
        )
        blocks = []
        for found, row in zip(results, rows, strict=True):
            block = np.full((len(found["status"]), *size), np.nan)
            if row is not None:
                block[tuple(slice(k) for k in row.shape)] = row
            kinds = [row.dtype for row in rows if row is not None]
            blocks.append(block.astype(np.result_type(*kinds)))
        attrs = {"long_name": words, "units": unit}
        attrs |= FLAGS if name == "status" else {}
        variables[label.format(m=metric)] = ((*axes, *dims), np.concatenate(blocks)[where], attrs)
    every, algs = config.every, made.algorithms
    about = lambda name: {"long_name": long_name(name), "role": experiment.role(name, algs)}
    coordinates: dict[str, Any] = {
        "round": ("round", np.arange(every, config.rounds + 1, every), {"long_name": "round"}),
        "client": ("client", np.arange(made.clients), {"long_name": "client"}),
    }
    for name, values in axes.items():
        if name == "point":
            coordinates["point"] = np.arange(len(values))
            for key in dict.fromkeys(k for point in values for k in point):
                column = [point.get(key, getattr(config, key, "")) for point in values]
                coordinates[key] = ("point", _column(column), about(key))
        else:
            coordinates[name] = (name, _column(values), about(name))
    used = {d for dims, *_ in variables.values() for d in dims}
    coordinates = {k: v for k, v in coordinates.items() if not isinstance(v, tuple) or v[0] in used}
    attrs = {
        "metric": metric,
        "over": json.dumps(made.space.over),
        "config": json.dumps(dataclasses.asdict(config)),
        "options": json.dumps({"stop_at": stop.at, "patience": stop.patience}),
        "provenance": json.dumps(provenance),
    }
    return xr.Dataset(variables, coordinates, attrs)


def _equal(a, b):
    return np.array_equal(a, b, equal_nan=True)


def _column(values):
    """A coordinate: numbers as such, everything else as text."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return np.array(values)
    return np.array([str(v) for v in values])
