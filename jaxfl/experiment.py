"""From names and numbers to what is run: data, partitions, models, algorithms, networks, scores."""

import dataclasses
import inspect
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxfl import metrics
from jaxfl.clients import Clients
from jaxfl.config import Call, Config, adversaries, parse, partitioners
from jaxfl.types import nearest, shown

# Data ------------------------------------------------------------------------------------------


def objects(data: Any, model: Any) -> tuple[Any, Any, dict[str, str]]:
    """Data and model where they are objects, and settings where they are names.

    Raises:
        ValueError: neither a name nor a `jaxfl.data.Dataset` or `jaxfl.models.Model`.
    """
    from jaxfl.data import Dataset
    from jaxfl.models import Model

    named, found = {}, []
    for name, value, kind in (("data", data, Dataset), ("model", model, Model)):
        if isinstance(value, str | os.PathLike):
            named[name] = os.fspath(value)
        elif value is not None and not isinstance(value, kind):
            fix = {"data": "jaxfl.data.load('digits')", "model": "jaxfl.models.make('mlp', ...)"}
            raise ValueError(
                f"{name} must be a name or a {kind.__name__}, got {value!r}; for example "
                f"`{name}={fix[name]}`"
            )
        found.append(value if isinstance(value, kind) else None)
    return found[0], found[1], named


def dataset(name: str) -> Any:
    """The data set of a name with options, or of a file or folder that `jaxfl.data.read` knows.

    A name of `jaxfl.data.DATASETS` comes before a file of the same name; a format of
    `jaxfl.data.FORMATS` takes options: `"table('adult.csv', target='income', client='country')"`.

    Raises:
        ValueError: neither; a file that is truncated or wrong.
    """
    from jaxfl import data

    known = data.DATASETS | data.FORMATS
    try:
        if name not in data.DATASETS and os.path.exists(name):
            return data.read(name)
        call = parse(name)
        return call.build(known, "data set", **_missing(data.DATASETS, call))
    except (data.FileError, OSError) as error:
        fix = f"table({name!r}, target='label')" if "target=" in str(error) else "digits"
        raise ValueError(f'cannot read data {shown(name)}: {error}; use `data="{fix}"`') from error
    except ValueError as error:
        if not re.fullmatch(r"[^()]*[/.][^()]*", name):  # it does not look like a path
            raise
        raise ValueError(
            f"cannot read data {shown(name)}: there is no such file in {os.getcwd()!r}; name one "
            "that is there, or a set: `data='digits'`"
        ) from error


def _missing(registry, call):
    """Generated data sets hold nothing out unless asked to."""
    known = inspect.signature(registry[call.name]).parameters if call.name in registry else {}
    return {k: 0.15 for k in ("valid", "test") if k in known}


def partition(config: Config, data: Any, seed: int) -> Any:
    """The partition of the training examples that a seed draws."""
    call, y = parse(config.partition), data.train["y"]
    if call.name == "natural":
        return data.partition
    if data.classes is None:  # tenths of the targets take the place of labels
        flat = np.asarray(y, float).reshape(len(y), -1)[:, 0]
        y = np.digitize(flat, np.quantile(flat, np.linspace(0, 1, 11)[1:-1]))
    elif y.ndim > 1:
        y = y[:, 0]
    more: dict[str, Any] = {"minimum": config.minimum}
    if call.name == "dirichlet":
        more["alpha"] = config.alpha
    return call.build(partitioners(), "partition", y, config.clients, seed=seed, **more)


def partitions(config: Config, data: Any) -> list[Any]:
    """The partition of every seed."""
    return [partition(config, data, s) for s in range(config.seed, config.seed + config.seeds)]


def _standard(data):
    """Targets of a regression in units of their deviation over the training examples."""
    mean, deviation = data.train["y"].mean(0), data.train["y"].std(0)
    scale = np.where(deviation > 0, deviation, 1)
    parts = {
        part: getattr(data, part) | {"y": ((getattr(data, part)["y"] - mean) / scale).astype("f4")}
        for part in ("train", "valid", "test")
    }
    return dataclasses.replace(data, **parts)


# Data and model --------------------------------------------------------------------------------


class Task(NamedTuple):
    """What is learned: the same for all partitions, seeds, algorithms and networks."""

    data: Any  # targets of a regression in units of their deviation
    model: Any
    loss: Any
    held: dict[str, Any]  # validation and test examples on the device, by part

    @property
    def metric(self) -> str:
        """ "accuracy", or "r2" for regressions."""
        return "r2" if self.data.classes is None else "accuracy"

    def clients(self, split: Any, config: Config, largest: int = 0) -> Clients:
        """The local problems.

        Args:
            split: a partition.
            config: its batch size and precision.
            largest: size of the largest client, a shape; at least that of `split`.
        """
        options: Any = {"batch": config.batch, "precision": config.precision}
        made: Any = Clients.make(self.data.train, split, self.loss, **options)
        return made.replace(largest=max(largest, made.largest))

    def start(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """The initial models `[S, ...]` and the keys `[S]` of runs."""

        def one(seed):
            first, second = jax.random.split(jax.random.key(seed))
            return self.model.init(first), second

        numbers = np.asarray(seeds, int)
        return compiled(jax.jit(jax.vmap(one)).lower(numbers))(numbers)

    def scores(self, split: Any, byzantine: int) -> "Scores":
        """The evaluator, by validation and test examples; Byzantine clients do not count."""
        share = jnp.asarray(np.arange(len(split.start)) >= byzantine, jnp.result_type(float))
        classes = self.data.classes if self.data.train["y"].ndim == 1 else None
        parts = []
        for held in self.held.values():
            weights = counts = None
            if classes is not None:
                y, float_ = np.asarray(held["y"]), jnp.result_type(float)
                own = metrics.label_weights(split, self.data.train["y"], y, classes)
                weights, counts = jnp.asarray(own, float_), jnp.asarray(split.count, float_)
            parts.append(metrics.Evaluate(self.model, held, weights, share, counts))
        return Scores(parts[0], parts[1], self.metric)


def task(config: Config, data: Any, model: Any = None) -> Task:
    """What is learned.

    Args:
        config: names the model.
        data: a `jaxfl.data.Dataset`.
        model: a `jaxfl.models.Model` in place of the named one.

    Raises:
        ValueError: no validation or test examples, an unknown model.
    """
    from jaxfl import models

    for part in ("valid", "test"):
        if not len(getattr(data, part)["y"]):
            raise ValueError(
                f"data {data.name!r} has no {part} examples; hold some out: "
                f"`data='{data.name}({part}=0.2)'`"
            )
    if data.classes is None:
        data = _standard(data)
    y = data.train["y"]
    if model is None:
        call = parse(config.model)
        outputs = data.classes or int(np.prod(y.shape[1:]))
        model = models.make(call.name, data.train, outputs, **call.options)
    losses = {
        True: models.cross_entropy if y.ndim == 1 else models.sequence_cross_entropy,
        False: models.squared_error,
    }
    held = {
        part: {k: jnp.asarray(v) for k, v in getattr(data, part).items()}
        for part in ("valid", "test")
    }
    for part in held.values():
        metrics.Evaluate(model, part).check()
    return Task(data, model, losses[data.classes is not None](model), held)


@struct.dataclass
class Scores:
    """What is kept of an evaluation: what is dropped here is not even compiled."""

    valid: Any
    test: Any
    metric: str = struct.field(pytree_node=False)

    def __call__(self, state: Any) -> dict[str, Any]:
        """The scores of a state."""
        test, valid = self.test(state), self.valid(state)
        headline = "personal" if "personal" in test else self.metric
        kept = {k: test[k] for k in ("loss", "worst", "clients", "consensus") if k in test}
        return kept | {
            "score": test[headline],
            "valid_score": valid[headline],
            "shared_score": test[self.metric],
        }


# Algorithms and networks -----------------------------------------------------------------------


class Job(NamedTuple):
    """One algorithm as it was named."""

    name: str  # with its options, without learning rates
    alg: Any  # with any learning rate
    lr: tuple[float, ...]  # those to try
    on: Call | None  # the graph that was named with it


def job(text: str, config: Config) -> Job:
    """The algorithm of a name with options: "fedprox(mu=0.1)", "dsgd(lr=[0.1, 0.3]) @ torus".

    Raises:
        ValueError: an unknown name or option, values that are not one number.
    """
    from jaxfl.algorithms import ALGORITHMS

    call = parse(text)
    if call.name not in ALGORITHMS:
        raise ValueError(f"no algorithm {shown(call.name)}{nearest(call.name, list(ALGORITHMS))}")
    if call.args:
        raise ValueError(f"options of {text!r} need names, as in '{call.name}(steps=5)'")
    maker: Any = ALGORITHMS[call.name]
    options = call.built()
    lr = Config.make(lr=options.pop("lr", config.lr)).lr
    try:
        plain = maker(lr=0.1)
    except TypeError as error:
        raise ValueError(
            f"{call.name} cannot be compared by its lr alone: {error}; run it by itself: "
            "`jaxfl.simulate(alg, ...)`"
        ) from None
    fields, kind = [f.name for f in dataclasses.fields(plain)], plain.needs.net.__name__
    for name, value in options.items():
        if name not in fields:
            raise ValueError(f"{type(plain).__name__} has no field {name!r}{nearest(name, fields)}")
        if isinstance(value, list):
            raise ValueError(
                f"only lr takes several values; {name} of {text!r} takes one; sweep it: "
                f"`jaxfl.sweep({{{name!r}: {value!r}}})`"
            )
    if "steps" in fields and kind in ("Cohort", "Arrivals"):
        options.setdefault("steps", config.steps)
    if call.on is not None and kind not in ("Graph", "Messages"):
        raise ValueError(
            f"'@ {call.on.name}' names a graph, but {call.name} needs {kind} nets; leave it out"
        )
    label = getattr(maker, "__name__", type(plain).__name__) + call.text
    return Job(label, maker(lr=0.1, **options), lr, call.on)


def graph(config: Config, job: Job) -> Call | None:
    """The graph of an algorithm, its own or the configuration's; None where it needs none."""
    kind = job.alg.needs.net.__name__
    return (job.on or parse(config.graph)) if kind in ("Graph", "Messages") else None


def drawn(alg: Any) -> bool:
    """Whether every seed has a network of its own: where a schedule is drawn in advance."""
    return alg.needs.net.__name__ in ("Arrivals", "Messages")


def network(config: Config, job: Job, n: int, seed: int) -> Any:
    """The network of n honest clients.

    Raises:
        ValueError: a graph that changes under messages, a net without rounds.
    """
    from jaxfl import networks
    from jaxfl.networks import graphs

    needs, on = job.alg.needs, graph(config, job)
    kind = needs.net.__name__
    keep = "row" if needs.rows or not needs.columns else "column"  # of links that fail one way
    links = networks.Links(config.compute, config.latency, config.up, config.down)
    if kind == "Graph" and on is not None:
        made = networks.graph(on.name, n, weights=config.weights, links=links, **on.options)
        made = networks.LinkFailures(made, config.failures, keep) if config.failures else made
        return networks.Churn(made, 1 - config.churn, keep) if config.churn else made
    if kind == "Arrivals":
        return networks.arrivals(n, config.cohort, config.rounds, seed=seed)
    if kind == "Messages" and on is not None:
        if on.name in networks.TIME_VARYING:
            raise ValueError(f"{on.name} changes every round; messages need a fixed graph: 'ring'")
        delay = round(100 * config.latency)  # a round takes a second
        return networks.gossip(
            graphs.make(on.name, n, **on.options),
            config.rounds,
            delay=(delay, delay),
            drop=config.failures,
            online=1 - config.churn,
            seed=seed,
        )
    if kind == "Cohort":
        return networks.Uniform(n, config.cohort, links)
    raise ValueError(
        f"{kind} nets have no common rounds to compare; run it alone: `jaxfl.simulate(alg, ...)`"
    )


def attacked(config: Config, network: Any, n: int) -> Any:
    """The network with the Byzantine clients that the configuration names."""
    from jaxfl import networks

    if not config.byzantine:
        return network
    adversary = parse(config.adversary).build(adversaries(), "adversary")
    return networks.Attacked(network, networks.first(config.byzantine, n), adversary)


def compiled(lowered: Any) -> Any:
    """Compiled, on the CPU without passes that take long and gain nothing for such programs."""
    given = os.environ.get("XLA_FLAGS", "")
    if jax.default_backend() == "cpu" and "xla_backend_optimization_level" not in given:
        fast = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
        try:
            return lowered.compile(compiler_options=fast)
        except jax.errors.JaxRuntimeError as error:
            if "compile option" not in str(error):  # of another release of XLA
                raise
    return lowered.compile()
