"""From configurations to programs: what can share one, and how many runs at once."""

import operator
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.engine import memory
from jaxfl.engine.contract import check
from jaxfl.engine.fields import check_ranges, strong
from jaxfl.engine.simulate import _rounds, init
from jaxfl.networks.kinds import KINDS, stackable
from jaxfl.runs.estimate import estimate
from jaxfl.runs.identity import Summed, identity
from jaxfl.studies import experiment
from jaxfl.studies.config import FIELDS, Config
from jaxfl.studies.experiment import compiled
from jaxfl.studies.space import Space
from jaxfl.types import Count, whole

# Pieces, each made once --------------------------------------------------------------------------


class Pieces:
    """What runs are made of, each piece made once."""

    def __init__(self, data: Any, model: Any):
        self.made: dict[Any, Any] = {}
        self.data, self.model = data, model

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made under a key, or is made now."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def task(self, c: Config) -> experiment.Task:
        """Data and model."""
        data = self.data
        if data is None:
            data = self.get(("data", c.data), lambda: experiment.dataset(c.data))
        make = lambda: experiment.task(c, data, self.model)
        return self.get(("task", c.data, c.model, experiment.varies(c, "split")), make)

    def job(self, c: Config) -> experiment.Job:
        """The algorithm."""
        key = ("job", c.algorithms, c.steps)
        return self.get(key, lambda: experiment.job(c.algorithms[0], c))

    def split(self, c: Config) -> tuple[Any, Any]:
        """A partition and its key."""
        unread = set() if c.partition.startswith("dirichlet") else {"alpha"}
        if c.partition.startswith("natural"):
            unread |= {"clients", "minimum"}
        key = ("split", *_values(c, "task", unread))
        if "clients" not in unread or experiment.varies(c, "split"):
            key = (*key, experiment.varies(c, "split"), c.seed)
        data = self.task(c).data
        return self.get(key, lambda: experiment.partition(c, data, c.seed)), key

    def network(self, c: Config, n: int) -> tuple[Any, Any]:
        """A network without attackers and its key: the settings that it depends on."""
        job = self.job(c)
        needs, seed = job.alg.needs, c.seed if experiment.drawn(c, job) else 0
        read = tuple(getattr(c, name) for name in experiment.kind(needs.net).settings)
        on = str(experiment.graph_of(c, job))
        key = ("network", needs.net, n, on, read, needs.rows, needs.columns, seed)
        return self.get(key, lambda: experiment.network(c, job, n, seed)), key

    def run(self, c: Config) -> tuple[Any, ...]:
        """What a run depends on: all settings but those that nothing of it reads."""
        split, split_key = self.split(c)
        _, world = self.network(c, split.n)
        apart = {"graph", "lr"}.union(*(kind.settings for kind in KINDS.values()))
        apart |= set() if c.byzantine else {"byzantine", "adversary"}
        others = _values(c, "world", apart), _values(c, "tuning", apart)
        return c.algorithms, c.seed, split_key, world, *others

    def level(self) -> None:
        """Networks that differ in their draws only in one shape, so that they share a program."""
        keys = [k for k in self.made if k[0] == "network"]
        group = lambda k: k[:-1] if k[1].common else k[:3]
        for one in dict.fromkeys(map(group, keys)):
            same = [k for k in keys if group(k) == one]
            made = stackable([self.made[k] for k in same])
            self.made |= zip(same, made, strict=True)

    def start(self, configs: Sequence[Config]) -> None:
        """Initial models and keys, and the size of the largest client of all partitions."""
        for c in configs:
            split = self.split(c)[0]
            size = ("largest", c.data, split.n)
            self.made[size] = max(self.made.get(size, 0), int(split.count.max()))
        for name in dict.fromkeys((c.data, c.model) for c in configs):
            own = [c for c in configs if (c.data, c.model) == name]
            seeds = list(dict.fromkeys(c.seed for c in own))
            params, keys = self.task(own[0]).start(seeds)
            params, keys = jax.tree.map(np.asarray, (params, jax.random.key_data(keys)))
            for s, seed in enumerate(seeds):
                row = jax.tree.map(operator.itemgetter(s), params)
                self.made["start", *name, seed] = {"params": row, "key": keys[s]}

    def parts(self, c: Config) -> tuple[Any, ...]:
        """Algorithm, clients, network, start and evaluator of a run, checked."""
        task, job, (split, key) = self.task(c), self.job(c), self.split(c)
        raw, world = self.network(c, split.n)
        first = ("clients", c.data, split.n, experiment.varies(c, "split"))
        first = (*first, *_values(c, "tuning", {"lr", "steps", "weights"}))
        most = self.made["largest", c.data, split.n]
        template = self.get(first, lambda: task.clients(split, c, most))
        clients = self.get(("rows", first, key), lambda: _rows(template, split))
        attacked = ("attacked", world, c.byzantine, c.adversary)
        network = self.get(attacked, lambda: experiment.attacked(c, raw, split.n))
        scored = ("scores", c.data, c.model, key, c.byzantine)
        scores = self.get(scored, lambda: task.scores(split, c, c.seed))
        start = self.made["start", c.data, c.model, c.seed]
        chosen = ("alg", c.algorithms, c.steps)
        alg = self.get(chosen, lambda: job.alg)
        check_ranges(alg)
        fits = lambda: check(alg, clients, network, start["params"], rounds=c.rounds)
        self.get(("checked", first, type(alg), attacked), fits)
        return alg, clients, network, start, scores

    def identity(self) -> dict[str, Any]:
        """What names and files stood for when the pieces were made."""
        kind = lambda word: {k[1:]: v for k, v in self.made.items() if k[0] == word}
        data = {name: data for (name,), data in kind("data").items()}
        models: dict[str, Any] = {}
        for (name, model, _), task in kind("task").items():
            models.setdefault(name, {})[model] = task.model
        return identity(
            data=data if self.data is None else self.data,
            model=models if self.model is None else self.model,
            algorithm={job.name: job.alg for job in kind("job").values()},
            partition=[Summed(split) for split in kind("split").values()],
            network=[Summed(network) for network in kind("attacked").values()],
        )


def _values(c, role, unread):
    """The settings of a role but those that do not count here."""
    return tuple(
        (name, getattr(c, name))
        for name, field in FIELDS.items()
        if field.metadata["role"] == role and name not in unread
    )


class _Column:
    """One piece of every run of a group: leaves that all share, and leaves that differ."""

    def __init__(self, pieces: Sequence[Any]):
        unique = {id(p): p for p in pieces}
        place = {key: i for i, key in enumerate(unique)}
        self.index = np.array([place[id(p)] for p in pieces])
        flat = [jax.tree.flatten(p) for p in unique.values()]
        self.treedef = flat[0][1]
        self.leaves, self.batched = [], []
        for leaves in zip(*(leaves for leaves, _ in flat), strict=True):
            own = any(leaf is not leaves[0] and not _same(leaf, leaves[0]) for leaf in leaves)
            self.leaves.append(np.stack([np.asarray(a) for a in leaves]) if own else leaves[0])
            self.batched.append(own)

    def rows(self, runs: np.ndarray) -> list[Any]:
        at = self.index[runs]
        return [a[at] if own else a for a, own in zip(self.leaves, self.batched, strict=True)]


def _same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def _signature(pieces):
    """What must agree for runs to share a program."""
    leaves, treedef = jax.tree.flatten(pieces)
    return treedef, tuple((np.shape(a), jnp.result_type(a)) for a in leaves)


class Group:
    """Runs that share a program."""

    def __init__(self, config: Config, runs: list[int], pieces: list[Any]):
        self.config, self.runs, self.first = config, np.array(runs), pieces[0]
        self.columns = [_Column(column) for column in zip(*pieces, strict=True)]
        self.treedefs = [c.treedef for c in self.columns]
        self.batched = [own for c in self.columns for own in c.batched]
        self.width = 1
        self._programs: dict[int, Future] = {}
        self._lock = threading.Lock()

    def rows(self, places: np.ndarray) -> list[Any]:
        """The leaves of some runs, by their places in the group."""
        return [leaf for column in self.columns for leaf in column.rows(places)]

    def _parts(self, leaves):
        parts, at = [], 0
        for treedef in self.treedefs:
            parts.append(jax.tree.unflatten(treedef, leaves[at : at + treedef.num_leaves]))
            at += treedef.num_leaves
        alg, clients, network, start, evaluate = parts
        key = jax.random.wrap_key_data(start["key"])
        return strong(alg, start["params"]), clients, network, start["params"], key, evaluate

    def programs(self, width: int, span: int, mesh: Any) -> tuple[Any, Any, Any]:
        """Compiled: the first states of `width` runs, `span` rounds of them; their structure."""
        axes = [0 if own else None for own in self.batched]

        def begin(leaves):
            alg, clients, _, params, key, _ = self._parts(leaves)
            return init(alg, clients, params, key)

        def advance(leaves, state, t):
            alg, clients, network, _, key, evaluate = self._parts(leaves)
            run = _rounds(
                alg,
                clients,
                network,
                key,
                t,
                state,
                evaluate,
                None,
                rounds=span,
                every=self.config.every,
            )
            return run.state, run.history._replace(aux=()), run.evaluations

        begin = jax.vmap(begin, in_axes=(axes,), axis_size=width // (mesh.size if mesh else 1))
        advance = jax.vmap(advance, in_axes=(axes, 0, None))
        leaves = self.rows(np.zeros(width, int))
        if mesh is not None:
            here, same = jax.P("sweep"), jax.P()
            own = [here if b else same for b in self.batched]
            over = {"mesh": mesh, "out_specs": here, "check_vma": False}
            begin = jax.shard_map(begin, in_specs=(own,), **over)
            advance = jax.shard_map(advance, in_specs=(own, here, same), **over)
            leaves = jax.device_put(leaves, [jax.NamedSharding(mesh, spec) for spec in own])
        begun = compiled(jax.jit(begin).lower(leaves))
        state = jax.eval_shape(begin, leaves)
        if mesh is not None:
            sharding = jax.NamedSharding(mesh, jax.P("sweep"))
            put = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
            state = jax.tree.map(put, state)
        stepped = jax.jit(advance, donate_argnums=1)
        advanced = compiled(stepped.lower(leaves, state, np.int32(0)))
        return begun, advanced, jax.tree.structure(state)

    def program(self, width: int, span: int, mesh: Any, pool: ThreadPoolExecutor) -> Future:
        """The programs of a width, compiled in the background, once."""
        with self._lock:
            if width not in self._programs:
                self._programs[width] = pool.submit(self.programs, width, span, mesh)
            return self._programs[width]


# The plan ----------------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """Runs that go through a program together, and are saved together."""

    group: int
    places: np.ndarray  # in the group


@dataclass(eq=False)
class Plan:
    """What a sweep will do: `print(jaxfl.plan(...))`."""

    space: Space
    where: np.ndarray  # the run of every combination, [*dimensions]
    groups: list[Group]
    chunks: list[Chunk]
    separate: list[str]  # axes with a program for every value
    bytes: int | None  # of the largest chunk, where it was estimated
    task: experiment.Task
    clients: int  # at most
    pieces: Pieces  # that the runs share
    done: int = 0  # chunks that a folder holds
    left: float = 0.0  # seconds for the others, at the pace of those

    @property
    def runs(self) -> int:
        """Different runs: combinations that cannot differ are run once."""
        return sum(len(group.runs) for group in self.groups)

    @property
    def algorithms(self) -> list[Any]:
        """What is run."""
        return [made for key, made in self.pieces.made.items() if key[0] == "alg"]

    def __str__(self) -> str:
        count = lambda k, word: f"{k:,} {word}{'' if k == 1 else 's'}"
        axes = ", ".join(f"{name} ({len(v)})" for name, v in self.space.axes.items())
        config = self.space.config
        lines = [f"{count(self.where.size, 'combination')}: {axes}"]
        if self.runs < self.where.size:
            lines.append(f"{count(self.runs, 'run')}: the others cannot differ from one of these")
        why = f", one for each {' and '.join(self.separate)}" if self.separate else ""
        lines.append(f"{count(len(self.groups), 'program')}{why}")
        widest = max(group.width for group in self.groups)
        lines.append(f"{count(len(self.chunks), 'chunk')} of at most {count(widest, 'run')}")
        lines.append(f"{count(config.rounds, 'round')}, evaluated every {config.every}")
        if self.bytes is not None:
            lines.append(f"about {memory._size(self.bytes)} of memory for a chunk")
        if self.done:
            lines.append(
                f"{self.done} of {len(self.chunks)} chunks are there, {_time(self.left)} left"
            )
        else:
            lines.append("the time it takes is known after the first chunk")
        return "\n".join(lines)


def _time(seconds):
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def plan(
    over: Any,
    config: Config | None = None,
    *,
    out: str | Path | None = None,
    width: Count = 0,
    devices: Count = 0,
    data: Any = None,
    model: Any = None,
    **settings: Any,
) -> Plan:
    """What `sweep` of the same arguments will do, without doing it: runs, programs, memory.

    Args:
        over, config, out, width, devices, data, model, settings: as for `sweep`.

    Raises:
        ValueError: what `sweep` refuses.

    Example:
        >>> over = {"lr": [0.1, 1.0], "alpha": [0.1, 1.0], "cohort": [2, 3], "seed": 5}
        >>> plan = jaxfl.plan(over, data="iris", clients=3, minimum=1)
        >>> plan.runs, len(plan.groups), plan.separate
        (40, 2, ['cohort'])
    """
    data, model, named = experiment.objects(data, model)
    space = over if isinstance(over, Space) else Space.make(over, config, **named, **settings)
    made = make(space, width, devices or jax.local_device_count(), data, model)
    elapsed = [] if out is None else _times(out)
    made.done = len(elapsed)
    made.left = (len(made.chunks) - made.done) * float(np.mean(elapsed or [0.0]))
    return made


def _times(out: str | Path) -> list[float]:
    """Seconds of the chunks that a folder holds."""
    times = []
    for path in sorted(Path(out).glob("chunks/[0-9]*[0-9].npz")):
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                times.append(float(file["elapsed"]))
        except Exception:  # damaged: said when it is needed
            continue
    return times


def make(
    space: Space, width: Count, devices: Count, data: Any, model: Any, widths: Sequence[int] = ()
) -> Plan:
    """The plan of a space.

    Args:
        space, width, devices, data, model: as for `sweep`.
        widths: sizes of the chunks of every group, where a folder has them.

    Raises:
        ValueError: numbers out of range, settings that do not fit together.
    """
    width, devices = whole("width", width), whole("devices", devices)
    if width < 0 or devices < 1 or devices > jax.local_device_count():
        raise ValueError(
            f"width must be 0 or more and devices 1 to {jax.local_device_count()}, got "
            f"width={width}, devices={devices}; leave them out"
        )
    pieces, places = Pieces(data, model), {}
    runs: list[Config] = []
    where = np.empty(space.size, int)
    for i, c in enumerate(space.runs()):
        where[i] = places.setdefault(pieces.run(c), len(runs))
        if where[i] == len(runs):
            runs.append(c)
    groups = _groups(runs, pieces)
    shape = [len(v) for v in space.axes.values()]
    where = where.reshape(shape)
    most = 0
    chunks = []
    for g, group in enumerate(groups):
        group.width, needed = _width(group, widths[g] if widths else width, devices)
        most = max(most, needed)
        total = len(group.runs)
        for at in range(0, total, group.width):
            chunks.append(Chunk(g, np.arange(at, min(at + group.width, total))))
    task = pieces.task(runs[0])
    n = max(pieces.split(c)[0].n for c in runs)
    separate = _separate(space, where, groups)
    return Plan(space, where, groups, chunks, separate, most, task, n, pieces)


def _groups(runs, pieces):
    """Runs by the program that they can share."""
    pieces.level()
    pieces.start(runs)
    found: dict[Any, tuple[list[int], list[Any], Config]] = {}
    for i, c in enumerate(runs):
        parts = pieces.parts(c)
        own = found.setdefault((c.data, c.model, *_signature(parts)), ([], [], c))
        own[0].append(i)
        own[1].append(parts)
    return [Group(c, own, parts) for own, parts, c in found.values()]


def _rows(template, split):
    """The local problems of another partition."""
    int32 = lambda a: np.asarray(a, np.int32)
    return template.replace(
        data=template.data._replace(order=int32(split.order)),
        start=int32(split.start),
        count=int32(split.count),
    )


def _width(group, width, devices):
    """Runs at once, and the bytes that they take (0 where the memory is not known)."""
    alg, clients, network, start, scores = group.first
    options: Any = {"rounds": group.config.rounds, "every": group.config.every, "exact": False}
    total, limit = len(group.runs), memory.limit()
    most = width or (64 if jax.default_backend() == "cpu" else 1024) * devices
    needed, per = 0, 0
    if limit is not None:
        one = estimate(alg, clients, network, start["params"], evaluate=scores, **options)
        one.check()
        per = one.total - one.data
        fit = devices * int((0.8 * limit - one.data) // max(per, 1))
        most = max(devices, min(most, fit) if not width else width)
        needed = one.data
    chunks = -(-total // most)
    width = -(-total // chunks)
    return width, needed + per * -(-width // devices)


def _separate(space, where, groups):
    """Axes whose values never share a program."""
    group = np.empty(max((g.runs.max() for g in groups), default=0) + 1, int)
    for g, one in enumerate(groups):
        group[one.runs] = g
    of, names = group[where], []
    for k, name in enumerate(space.axes):
        values = [set(np.take(of, i, k).ravel()) for i in range(of.shape[k])]
        if len(values) > 1 and sum(map(len, values)) == len(set().union(*values)):
            names.append(name)
    return names
