"""From names and numbers to what is run: data, partitions, models, algorithms, networks, scores."""

import contextlib
import dataclasses
import inspect
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl import metrics, struct
from jaxfl.data.partitioners import _grouped, _thirds
from jaxfl.engine.clients import Clients
from jaxfl.engine.contract import Personal
from jaxfl.engine.fields import check_ranges
from jaxfl.networks.kinds import KINDS, Kind
from jaxfl.studies import config as settings
from jaxfl.studies.config import Config
from jaxfl.studies.names import Call, parse
from jaxfl.studies.registry import adversaries, made, partitioners
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


def varies(config: Config, what: str) -> bool:
    """Whether seeds draw the "split" or the "graph" too."""
    return config.vary in (what, "all")


def divided(config: Config, data: Any, seed: int) -> dict[str, np.ndarray] | None:
    """Rows of `pooled(data)` by part, as a seed draws them; None where all seeds share the parts.

    Sizes are those of the parts, shares the same in every class, or for the natural partition in
    every client.

    Raises:
        ValueError: clients that test and never train, whom no seed can draw.
    """
    if not varies(config, "split"):
        return None
    sizes = [len(getattr(data, part)["y"]) for part in _PARTS]
    if parse(config.partition).name == "natural":
        group = np.concatenate([owners(data, part) for part in _PARTS])
        if group.max() >= data.partition.n:
            raise ValueError(
                f"data {data.name!r} has clients that never train, so that no seed can draw who "
                "does; use `vary='run'`"
            )
    elif data.classes is not None and data.train["y"].ndim == 1:
        group = pooled(data, ("y",))["y"]
    else:
        group = np.zeros(sum(sizes), int)
    rng = np.random.default_rng([seed, _SPLIT])
    side = _thirds(group, sizes[1] / sum(sizes), sizes[2] / sum(sizes), rng)
    return {part: np.flatnonzero(side == i).astype(np.int32) for i, part in enumerate(_PARTS)}


_PARTS = ("train", "valid", "test")
_SPLIT = 0x5917  # beside the seed, so that the split and the partition are drawn apart


def pooled(data: Any, names: Sequence[str] = ("x", "y")) -> dict[str, np.ndarray]:
    """All examples, those of training first, then of validation and test."""
    return {k: np.concatenate([getattr(data, part)[k] for part in _PARTS]) for k in names}


def owners(data: Any, part: str) -> np.ndarray:
    """The natural client of every example of a part, `data.partition.n` or more if it is none.

    Raises:
        ValueError: the data do not say whose these examples are.
    """
    if part not in data.partitions:
        raise ValueError(
            f"data {data.name!r} does not say whose its {part} examples are; leave vary out"
        )
    split = data.partitions[part]
    owner = np.empty(len(split.order), np.int32)
    owner[split.order] = split.owner()
    return owner


def weighed(data: Any, y: np.ndarray) -> tuple[np.ndarray, int]:
    """What re-weights held-out examples: the `kinds` of y, and of sequences nothing does."""
    return (np.zeros(len(y), int), 1) if data.classes and y.ndim > 1 else kinds(data, y)


def kinds(data: Any, y: np.ndarray) -> tuple[np.ndarray, int]:
    """What a partition splits by, for labels or targets y, and how many kinds there are.

    Labels, the first of several; of targets the tenth of the training targets that they lie in.
    """
    first = np.asarray(y).reshape(len(y), -1)[:, 0]
    if data.classes is not None:
        return np.maximum(first, 0), data.classes
    seen = np.asarray(data.train["y"], float).reshape(len(data.train["y"]), -1)[:, 0]
    return np.digitize(first.astype(float), np.quantile(seen, np.linspace(0, 1, 11)[1:-1])), 10


def partition(config: Config, data: Any, seed: int) -> Any:
    """The partition of the training examples that a seed draws.

    Its order are rows of `data.train`, or of `pooled(data)` where seeds draw the split too.
    """
    call, rows = parse(config.partition), divided(config, data, seed)
    if call.name == "natural":
        if rows is None:
            return data.partition
        owner = np.concatenate([owners(data, part) for part in _PARTS])[rows["train"]]
        made = _grouped(owner, data.partition.n)
    else:
        y = data.train["y"] if rows is None else pooled(data, ("y",))["y"][rows["train"]]
        more: dict[str, Any] = {"minimum": config.minimum}
        if call.name == "dirichlet":
            more["alpha"] = config.alpha
        given = partitioners(), "partition", kinds(data, y)[0], config.clients
        made = call.build(*given, seed=seed, **more)
    return made if rows is None else made._replace(order=rows["train"][made.order])


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
    held: dict[str, Any]  # validation and test examples on the device, by part, or all in "pool"

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
        examples = self.held.get("pool", self.data.train)
        made: Any = Clients.make(examples, split, self.loss, **options)
        return made.replace(largest=max(largest, made.largest))

    def start(self, seeds: Sequence[int]) -> tuple[Any, Any]:
        """The initial models `[S, ...]` and the keys `[S]` of runs."""

        def one(seed):
            first, second = jax.random.split(jax.random.key(seed))
            return self.model.init(first), second

        numbers = np.asarray(seeds, int)
        return compiled(jax.jit(jax.vmap(one)).lower(numbers))(numbers)

    def scores(self, split: Any, config: Config, seed: int) -> "Scores":
        """The evaluator, by validation and test examples; Byzantine clients do not count.

        A client's own examples are those that are its own by nature, else the held-out ones
        weighted by what it trains on: by its labels, or by the tenths of its targets. Of sequences
        these are all.

        Args:
            split: the partition of a seed.
            config: how many are Byzantine, whether the split varies, and what chooses.
            seed: of the partition.
        """
        data, float_ = self.data, jnp.result_type(float)
        rows = divided(config, data, seed)
        natural = parse(config.partition).name == "natural"
        share = jnp.asarray(np.arange(len(split.start)) >= config.byzantine, float_)
        counts = jnp.asarray(split.count, float_)
        labels = data.classes is not None and data.train["y"].ndim == 1
        trained = data.train["y"] if rows is None else pooled(data, ("y",))["y"]
        trained, many = weighed(data, trained)
        made = {}
        for part in ("valid", "test"):
            if rows is None:
                mine, held = None, self.held[part]
                group = weighed(data, getattr(data, part)["y"])[0]
                owner = owners(data, part) if natural and part in data.partitions else None
                here = group
            else:
                mine, held, group = rows[part], self.held["pool"], trained
                owner = np.concatenate([owners(data, p) for p in _PARTS]) if natural else None
                here = group[mine]
            strict = labels and not natural
            weights = metrics.label_weights(split, trained, here, many, strict=strict)
            put = lambda a, kind: None if a is None else jnp.asarray(a, kind)
            made[part] = metrics.Evaluate(
                self.model,
                held,
                put(weights, float_),
                share,
                counts,
                groups=None if labels else put(group, np.int32),
                owner=put(owner, np.int32),
                rows=put(mine, np.int32),
            )
        return Scores(made["valid"], made["test"], self.metric, config.select, *self.guess())

    def guess(self) -> tuple[float, float]:
        """Score and loss of the best constant prediction, about: what a model must not undercut.

        Of classes the most frequent one, and all of them equally probable.
        """
        if self.data.classes is None:
            return 0.0, 1.0
        y = self.data.train["y"]
        share = np.bincount(y[y >= 0]).max() / y.size
        return float(share), float(np.log(max(self.data.classes, 2)))


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
        options = call.options
        if call.name == "factors" and data.vocabulary:  # items that nobody has in training too
            options = {"items": len(data.vocabulary)} | options
        model = models.make(call.name, data.train, outputs, **options)
    losses = {
        True: models.cross_entropy if y.ndim == 1 else models.sequence_cross_entropy,
        False: models.squared_error,
    }
    if varies(config, "split"):
        held = {"pool": pooled(data, tuple(data.train))}
    else:
        held = {part: getattr(data, part) for part in ("valid", "test")}
    held = {k: {name: jnp.asarray(a) for name, a in part.items()} for k, part in held.items()}
    for part in held.values():
        metrics.Evaluate(model, part).check()
    return Task(data, model, losses[data.classes is not None](model), held)


_LOST = 1e3  # times the loss of a constant prediction: a run that diverged, finite or not


@struct.dataclass
class Scores:
    """What is kept of an evaluation: what is dropped here is not even compiled.

    Scores on all labels and on clients' own; `choice` is the validation score that chooses a
    learning rate. `diverged` says that a score or loss is not finite, or that the validation loss
    is a thousand times that of a constant prediction, without a better score than that has.
    """

    valid: Any
    test: Any
    metric: str = struct.field(pytree_node=False)
    select: str = struct.field(pytree_node=False, default="auto")
    guess_score: float = struct.field(pytree_node=False, default=0.0)
    guess_loss: float = struct.field(pytree_node=False, default=np.inf)

    def __call__(self, state: Any) -> dict[str, Any]:
        """The scores of a state."""
        test, valid = self.test(state), self.valid(state)
        own = self.select == "own" or (self.select == "auto" and isinstance(state, Personal))
        names = {"score": self.metric, "own_score": "own", "personal_score": "personal"}
        same = ("loss", "own_loss", "worst", "clients", "consensus")
        names |= {k: k for k in same}
        kept = {k: test[name] for k, name in names.items() if name in test}
        kept |= {"valid_score": valid[self.metric], "valid_own_score": valid["own"]}
        kept["choice"] = kept["valid_own_score" if own else "valid_score"]
        lost = ~jnp.isfinite(kept["score"]) | ~jnp.isfinite(kept["own_score"])
        for score, loss in ((self.metric, "loss"), ("own", "own_loss")):
            score, loss = valid[score], valid[loss]
            huge = (loss > _LOST * self.guess_loss) & (score <= self.guess_score)
            lost |= ~jnp.isfinite(score) | ~jnp.isfinite(loss) | huge
        return kept | {"diverged": lost}


# Algorithms and networks -----------------------------------------------------------------------


class Job(NamedTuple):
    """One algorithm as it was named."""

    name: str  # with its options, but for those tuned
    alg: Any  # with any value of what is tuned
    tuned: str  # the field of which several values are tried, if any
    lr: tuple[float, ...]  # these values
    on: Call | None  # the graph that was named with it


def job(text: str, config: Config) -> Job:
    """The algorithm of a name with options: "fedprox(mu=0.1)", "dsgd(lr=[0.1, 0.3]) @ torus".

    The field with several values is tuned; without one that which the algorithm marks,
    `hyper(tune=True)`, over `config.lr`; if there is neither, the options are its one setting.

    Raises:
        ValueError: an unknown name or option, values that are missing or not one number.
    """
    call = parse(text)
    maker, known = _known(call)
    options, net = call.built(), made(maker).needs.net
    for name in options:
        if name not in known:
            who = made(maker).__name__
            raise ValueError(f"{who} has no field {name!r}{nearest(name, list(known))}")
    tuned = _tuned(call, known)
    given = options.pop(tuned, None)
    lr: tuple[float, ...] = _tried(text, tuned, known[tuned], given, config) if tuned else ()
    if "steps" in known and net.server:
        options.setdefault("steps", config.steps)
    if call.on is not None and net.server:
        raise ValueError(
            f"'@ {call.on.name}' names a graph, but {call.name} needs {net.__name__} nets; leave "
            "it out"
        )
    first = {tuned: lr[0]} if lr else {}
    if missing := [k for k in _needed(maker) if k not in options | first]:
        fix = ", ".join([*(w for _, w in call.written), *(f"{k}=1.0" for k in missing)])
        raise ValueError(
            f"{call.name} needs {' and '.join(missing)}; write '{call.name}({fix})', or mark what "
            "is tuned: `hyper(tune=True)`"
        )
    alg = maker(**options, **first)
    if tuned:
        check_ranges(dataclasses.replace(alg, **{tuned: np.asarray(lr)}))
    return Job(maker.__name__ + call.text(tuned), alg, tuned, lr, call.on)


def fields(call: Call) -> dict[str, tuple[Any, Any]]:
    """The fields of an algorithm: their values, and what is tried of those that are tuned.

    `MISSING` where it needs one; True for the learning rates of `Config.lr`, False for nothing.
    """
    maker, known = _known(call)
    usual = {name: field.default for name, field in known.items()}
    if maker is not made(maker):  # a function has defaults of its own
        alg = maker(**dict.fromkeys(_needed(maker), 1.0))
        usual |= {k: getattr(alg, k) for k in known if k not in _needed(maker)}
    return {k: (usual[k], field.metadata.get("tune", False)) for k, field in known.items()}


def _needed(maker):
    parameters = inspect.signature(maker).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def _known(call):
    """The maker of a named algorithm, and the fields of what it makes."""
    from jaxfl.algorithms import ALGORITHMS

    if call.name not in ALGORITHMS:
        raise ValueError(f"no algorithm {shown(call.name)}{nearest(call.name, list(ALGORITHMS))}")
    if call.args:
        raise ValueError(f"options of {str(call)!r} need names, as in '{call.name}(steps=5)'")
    maker: Any = ALGORITHMS[call.name]
    if not dataclasses.is_dataclass(made(maker)):
        raise ValueError(
            f"algorithm {call.name!r} does not say what it makes; register a class, or a function "
            "that does: `def mine(lr) -> FedAvg: ...`"
        )
    return maker, {field.name: field for field in dataclasses.fields(made(maker))}


def _tuned(call, known):
    """The field of which several values are tried; "" if there is none."""
    marked = [k for k, field in known.items() if field.metadata.get("tune")]
    listed = [k for k, value in call.options.items() if isinstance(value, list)]
    for name in listed:
        about = known[name].metadata
        wrong = not about.get("pytree_node", True) or "low" not in about
        if wrong or about.get("role", "tuning") not in ("", "tuning"):
            why = "is no traced number" if wrong else "is not chosen on validation data"
            raise ValueError(
                f"{name} of {call} {why}, and takes one value; sweep it: "
                f"`jaxfl.sweep({{{name!r}: {call.options[name]!r}}})`"
            )
    several = listed + [k for k in marked if k not in call.options]
    if len(several) > 1:
        one, *others = several
        fix = ", ".join(f"{k}=0.1" for k in others)
        raise ValueError(
            f"one field takes several values, and {' and '.join(several)} of {call} do; give all "
            f"but one a value, '{call.name}({one}=[...], {fix})', or sweep them: "
            f"`jaxfl.sweep({{{one!r}: [...]}})`"
        )
    return (several or marked or [""])[0]


def _tried(text, name, field, given, config):
    """The values of a tuned field: those given, or those that it or the configuration has."""
    tune = field.metadata.get("tune")
    if given is None:
        given = tune if isinstance(tune, tuple) else config.lr
    if name == "lr":
        return Config.make(lr=given).lr
    values = tuple(given) if isinstance(given, list | tuple) else (given,)
    number = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v)
    if not values or not all(map(number, values)) or (np.diff(values) <= 0).any():
        raise ValueError(
            f"{name} of {text!r} must be rising numbers, got {shown(given)}; for example "
            f"`{name}=[0.1, 1.0]`"
        )
    return tuple(map(float, values))


def role(name: str, algs: Sequence[Any]) -> str:
    """The role of an axis: that of the algorithms' field, or of the setting, of this name.

    "tuning" only where no algorithm says otherwise: what one takes for its world is not chosen.
    """
    others = {_role(alg, name) for alg in algs} - {"tuning"}
    return min(others, default="tuning") if algs else settings.role(name)


def _role(alg, name):
    for head in name.split("."):
        fields = dataclasses.fields(alg) if dataclasses.is_dataclass(alg) else ()
        field = next((f for f in fields if f.name == head), None)
        if field is None:
            return settings.role(name)
        if said := field.metadata.get("role"):
            return said
        alg = getattr(alg, head)
    return getattr(alg, "role", "tuning")  # of a whole part


def graph_of(config: Config, job: Job) -> Call | None:
    """The graph of an algorithm, its own or the configuration's; None where it needs none."""
    return None if job.alg.needs.net.server else job.on or parse(config.graph)


def drawn(config: Config, job: Job) -> bool:
    """Whether every seed has a network of its own: where a schedule or a graph is drawn for it."""
    return not job.alg.needs.net.common or (
        varies(config, "graph") and _random(graph_of(config, job))
    )


def _random(on):
    """Whether a graph is drawn once and then fixed."""
    from jaxfl.networks import GRAPHS

    build = GRAPHS.get(on.name) if on else None
    return build is not None and "seed" in inspect.signature(build).parameters


def _drawn_once(call, graphs):
    """Whether an algorithm runs on a graph that is drawn once, its own or one of these."""
    from jaxfl.algorithms import ALGORITHMS

    needs = getattr(ALGORITHMS.get(call.name), "needs", None)
    if call.on is None and needs is not None and not needs.net.server:
        return any(_random(parse(name)) for name in graphs)
    return _random(call.on)


def covers(config: Config, algorithms: Sequence[str] = (), graphs: Sequence[str] = ()) -> str:
    """What intervals over seeds cover, and what they do not, in a sentence.

    Args:
        config: of the runs.
        algorithms: their names; those of the configuration by default.
        graphs: likewise.
    """
    random = False
    for text in algorithms or config.algorithms:
        with contextlib.suppress(ValueError):  # a name that only a reader gave
            random |= _drawn_once(parse(text), graphs or (config.graph,))
    split, graph = varies(config, "split"), varies(config, "graph")
    natural = parse(config.partition).name == "natural"
    words = ("the split into training, validation and test examples", "the random graph")
    draws = [words[0]] * split + ["the partition"] * (not natural) + ["the initial model"]
    draws += [words[1]] * (random and graph)
    fixed = [words[0]] * (not split) + [words[1]] * (random and not graph)
    text = f"A seed draws {', '.join(draws)} and all that is drawn in a run"
    return text + (f"; intervals do not cover {' nor '.join(fixed)}." if fixed else ".")


def kind(net: type) -> Kind:
    """How a configuration makes networks of a kind of net.

    Raises:
        ValueError: it does not.
    """
    if net not in KINDS:
        name = net.__name__
        raise ValueError(
            f"nobody has said how a configuration makes {name} nets; do so, "
            f"`jaxfl.networks.kinds.KINDS[{name}] = Kind(settings, make)`, or run it alone: "
            "`jaxfl.simulate(alg, ...)`"
        )
    return KINDS[net]


def network(config: Config, job: Job, n: int, seed: int) -> Any:
    """The network of n honest clients.

    Raises:
        ValueError: a graph that changes, where there are no common rounds; a kind of net of which
            no network can be made.
    """
    needs, on = job.alg.needs, graph_of(config, job)
    if on is not None and varies(config, "graph") and _random(on):
        on = on._replace(options=on.options | {"seed": on.options.get("seed", 0) + seed})
    return kind(needs.net).make(config, needs, n, on, seed)


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
