"""Sweeps: every combination of settings, grouped into programs, run in chunks, kept in a folder."""

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxfl.runs import folder
from jaxfl.studies import experiment
from jaxfl.studies.config import Config
from jaxfl.studies.dataset import dataset
from jaxfl.studies.execution import Stop, execute
from jaxfl.studies.plan import make as _plan
from jaxfl.studies.space import Space
from jaxfl.studies.store import Store
from jaxfl.types import Count

if TYPE_CHECKING:
    import xarray


def sweep(
    over: Any,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    stop_at: float = math.inf,
    patience: Count = 0,
    width: Count = 0,
    devices: Count = 0,
    progress: bool = False,
    data: Any = None,
    model: Any = None,
    **settings: Any,
) -> "xarray.Dataset":
    """Every combination of settings: `sweep({"lr": [0.1, 0.3], "alpha": [0.1, 1.0], "seed": 8})`.

    Runs that differ in traced values only (learning rates and other hyperparameters, seeds,
    partitions, mixing weights, failure rates, who attacks and how strongly) share a program; a
    value that sets a shape or a trip count (a cohort, local steps, a model, an algorithm) has one
    of its own. `print(jaxfl.plan(...))` says which. Combinations that cannot differ, such as of a
    server method on several graphs, are run once. A run of a sweep has the numbers of the same run
    in `compare`, to rounding.

    A run leaves when it has diverged, reached `stop_at`, or run out of `patience`; the others'
    numbers stay the same to rounding, and what it would have scored is NaN.

    Args:
        over: values by name, of which the product is run; or a list of points, value by name. Names
            are those of fields of `Config` ("alpha", "graph", "byzantine", ...), "algorithm",
            "seed" (a number is how many), fields of the algorithms ("lr", "mu", "compress"), and
            options of any of these ("compress.fraction", "adversary.z", "graph.p").
        config: what is not swept; by default `Config()` with FedAvg alone. Several `algorithms` or
            learning rates in it are swept too.
        out: a folder to keep results in, new or empty, chunk by chunk; the same call goes on where
            it was. The same call has the same `over`, settings, `stop_at` and `patience`, and what
            its names stand for is the same: data by content (also of a file), models, algorithms,
            partitions and networks by value and code, as in `jaxfl.run`; so are x64, the backend,
            the default precision and the kind of random numbers. `width` and `devices` do not
            count.
        stop_at: validation score at which a run has reached its target.
        patience: evaluations without a better validation score after which a run stops; 0 is never.
        width: runs at once; by default what fits the memory, and at most 64 on a CPU.
        devices: over how many to spread the runs; all by default.
        progress: show progress on the terminal.
        data: a `jaxfl.data.Dataset`, in place of a named one.
        model: a `jaxfl.models.Model`, in place of a named one.
        settings: fields of `Config` to change, such as `rounds=100`.

    Returns:
        Dimensions are what was swept, then seed, and round (of the evaluations) or client;
        variables `accuracy` (or `r2`), `valid_accuracy`, `loss`, `train_loss`, `worst`,
        `client_accuracy`, `consensus`, `megabytes`, `grads`, `seconds`, `status`, `stopped`. See
        `jaxfl.results` for what to ask of them.

    Raises:
        ValueError: bad input of any kind, before anything is computed; a folder of another sweep
            (what differs is named, with both values), with other files, or damaged.
        OSError: a folder that cannot be written, or that another process is writing to.
        Interrupted: Ctrl-C or SIGTERM; what there was is in the folder.

    Example:
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> ds = jaxfl.sweep({"lr": [0.1, 1.0], "seed": 3}, data="iris", model="logistic", **small)
        >>> ds.accuracy.dims, ds.accuracy.shape
        (('lr', 'seed', 'round'), (2, 3, 2))
    """
    data, model, named = experiment.objects(data, model)
    space = over if isinstance(over, Space) else Space.make(over, config, **named, **settings)
    stop = _stop(stop_at, patience)
    if out is not None:
        folder.possible(out)
    devices = devices or jax.local_device_count()
    options = {"stop_at": stop.at, "patience": stop.patience}
    with contextlib.ExitStack() as stack:
        store = None
        if out is not None:
            store = stack.enter_context(Store.open(Path(out), space, options))
        made = _plan(space, width, devices, data, model, store.widths if store else ())
        mesh = None
        if devices > 1:
            auto = (jax.sharding.AxisType.Auto,)
            mesh = jax.make_mesh((devices,), ("sweep",), axis_types=auto)
        if store is not None:
            store.start(made, devices)
        results = execute(made, stop, mesh, store, progress)
        ds = dataset(made, results, stop, store.provenance if store else folder.provenance())
        if store is not None:
            store.finish(ds)
    return ds


def _stop(at, patience):
    if math.isnan(at) or patience < 0 or patience != int(patience):
        raise ValueError(
            f"stop_at must be a score and patience a whole number of evaluations, got {at} and "
            f"{patience}; for example stop_at=0.9, patience=5"
        )
    return Stop(float(at), int(patience))
