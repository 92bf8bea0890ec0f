"""Running algorithms: one scan over rounds, chunked runs, grids of hyperparameters."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer

from jaxfl import checks, comm, devices, memory
from jaxfl.clients import Clients, LossShapeError
from jaxfl.networks.topologies import check as check_network
from jaxfl.networks.topologies import layers, speeds
from jaxfl.types import Count, Info, Key, Params, Scalar, fork, nearest, shown, whole


@runtime_checkable
class Algorithm(Protocol):
    """What every algorithm is: a frozen pytree of hyperparameters with two pure methods."""

    def init(self, params: Params, clients: Clients, key: Key) -> Any:
        """The state before the first round."""
        ...

    def round(self, state: Any, clients: Clients, net: Any, key: Key) -> tuple[Any, Info]:
        """One round."""
        ...


@dataclasses.dataclass(frozen=True)
class Needs:
    """What an algorithm asks of its network; `simulate` refuses what does not fit.

    Args:
        net: the kind of net: `Cohort`, `Graph`, `Arrivals`, `Events` or `Messages`.
        static: the graph must not change.
        lossless: no link may fail.
        rows: rows of the mixing matrix must sum to 1.
        columns: columns of the mixing matrix must sum to 1.
        local: adversaries must be row-local.
        broadcast: all receivers must get the same message.
        check: `check(alg, network)` raises ValueError; called when the network is concrete.

    Example:
        >>> needs = algorithms.ExactDiffusion.needs
        >>> needs.net.__name__, needs.static, needs.lossless
        ('Graph', True, True)
    """

    net: type
    static: bool = False
    lossless: bool = False
    rows: bool = False
    columns: bool = False
    local: bool = False
    broadcast: bool = False
    check: Callable[[Any, Any], None] | None = None


class History(NamedTuple):
    """What every round reported, leaves `[rounds, ...]`; the fields of `Info`, and two more.

    Costs are means over who took part, each counted once, so that times `clients` they are what all
    of them did. Of nobody they are 0, and the loss is NaN: none was measured. Gradients that all
    clients compute in `init` are costs of round 0, and count them among its `clients`.

    Example:
        >>> run = jaxfl.simulate(
        ...     algorithms.FedAvg(lr=0.5), problems.quadratics(n=4).clients(),
        ...     networks.Uniform(4, 2), jnp.zeros(5), jax.random.key(0), rounds=20,
        ... )
        >>> {name: total.shape for name, total in run.history.totals().items()}
        {'rounds': (20,), 'megabytes': (20,), 'grads': (20,), 'seconds': (20,)}
    """

    loss: Scalar  # training loss
    up: Scalar  # bits sent, also those that were lost
    down: Scalar  # bits that arrived
    grads: Scalar  # minibatch gradients
    aux: Any
    clients: Scalar  # how many took part
    seconds: Scalar  # simulated duration of the round

    def totals(self) -> dict[str, np.ndarray]:
        """Cumulative cost after every round, summed in float64 on the host.

        Returns:
            `rounds`, `megabytes` (sent and received, all clients), `grads` (minibatch gradients,
            all clients), `seconds` (simulated), each with the round as the last axis.
        """
        up, down, grads, clients, seconds = (
            np.asarray(a, np.float64)
            for a in (self.up, self.down, self.grads, self.clients, self.seconds)
        )
        return {
            "rounds": np.broadcast_to(np.arange(1, up.shape[-1] + 1), up.shape),
            "megabytes": np.cumsum((up + down) * clients, -1) / 8e6,
            "grads": np.cumsum(grads * clients, -1),
            "seconds": np.cumsum(seconds, -1),
        }


def mean_loss(loss: np.ndarray, grads: np.ndarray) -> np.ndarray:
    """The mean training loss over the last axis, of rounds in which somebody trained.

    Args:
        loss, grads: of a `History`.

    Returns:
        NaN where nobody ever trained, or where a loss was NaN.
    """
    here = np.asarray(grads) > 0
    total, count = np.where(here, loss, 0.0).sum(-1), here.sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class Run(NamedTuple):
    """The end of a simulation."""

    state: Any  # `state.params` is the deployable model
    history: History  # per round
    evaluations: Any  # what `evaluate` returned, leaves [rounds / every, ...]; () without


def keys(key: Key, t: Scalar) -> tuple[Key, Key]:
    """The keys of round t: of the network, and of the algorithm.

    They do not depend on the algorithm: under one key, all algorithms meet the same cohorts,
    graphs, delays, failures and attackers.
    """
    now = jax.random.fold_in(key, t)
    return fork(now, "network"), now


def init(alg: Any, clients: Clients, params: Params, key: Key) -> Any:
    """The state before the first round, its key apart from those of the rounds."""
    start = lambda clients: alg.init(params, clients, fork(key, "init"))
    state = start(clients) if clients.over is None else devices.stay(start, clients)
    checks.state(alg, state)
    return jax.tree.map(jnp.copy, state)  # never the caller's arrays, so that it can be donated


def simulate(
    alg: Any,
    clients: Clients,
    network: Any,
    params: Params,
    key: Key,
    *,
    rounds: Count,
    start: Count = 0,
    state: Any = None,
    every: Count = 0,
    evaluate: Callable | None = None,
    schedule: Callable | None = None,
) -> Run:
    """A whole experiment as one XLA program.

    It can be jitted, mapped over the algorithm's traced fields (`jax.vmap(run)(grid(...))`), the
    key, the network's arrays, and differentiated.

    Args:
        alg: the algorithm, with numbers or arrays in its traced fields.
        clients: the local problems.
        network: what the world does, of the kind the algorithm needs.
        params: the initial model, `[...]`.
        key: everything random follows from it; round t uses `fold_in(key, t)`.
        rounds: how many.
        start: number of the first round, for a resumed run.
        state: where to go on; by default `init` makes one.
        every: evaluate after every so many rounds, inside the program; must divide `rounds`.
        evaluate: `evaluate(state) -> pytree`; carry its data in a pytree (`jaxfl.metrics`, or
            `jax.tree_util.Partial(f, data)`), so that they are not baked into the program.
        schedule: `schedule(alg, t) -> alg`, hyperparameters that change with the round.

    Returns:
        `Run(state, history, evaluations)`.

    Raises:
        ValueError: a network that does not fit the algorithm, values out of range, sizes that
            disagree, `every` that does not divide `rounds`, clients whose examples are on the host.

    Example:
        >>> problem = problems.quadratics(n=4)
        >>> run = jaxfl.simulate(
        ...     algorithms.FedAvg(lr=0.5), problem.clients(), networks.Uniform(4, 2),
        ...     jnp.zeros(5), jax.random.key(0), rounds=20,
        ...     every=10, evaluate=metrics.Distance(problem.optimum),
        ... )
        >>> run.state.params.shape, run.history.loss.shape, run.evaluations["distance"].shape
        ((5,), (20,), (2,))
    """
    _check_given(clients, key, state, evaluate, schedule)
    clients._resident()
    rounds, every, start = _counts(rounds=rounds, every=every, start=start)
    check(alg, clients, network, params, rounds=start + rounds if _concrete(start) else rounds)
    alg = strong(alg, params)
    _check_every(rounds, every, evaluate)
    memory.refuse(_init, alg, clients, params, key, rounds=rounds)
    state = _init(alg, clients, params, key) if state is None else _copied(state)
    t = jnp.asarray(start, jnp.int32)
    given = (alg, clients, network, key, t, state, _callable(evaluate), _callable(schedule))
    plain = all(map(_concrete, jax.tree.leaves(given)))
    # Under a transformation buffers are not this call's to give away.
    return (_chunk if plain else _scan)(*given, rounds=rounds, every=every or rounds)


def _scheduled(schedule, alg, t, params):
    """The algorithm of round t."""
    now = schedule(alg, t)
    if type(now) is not type(alg):
        raise ValueError(
            f"schedule must return the algorithm of the round, got {type(now).__name__}; for "
            "example `lambda alg, t: alg.replace(lr=alg.lr / (1 + t))`"
        )
    check_ranges(now, single=True)
    return strong(now, params)


def _callable(f):
    """A function as a pytree: records and Partials keep their arrays traced."""
    if f is None or jax.tree_util.treedef_is_leaf(jax.tree.structure(f)):
        return jax.tree_util.Partial(f) if f is not None else None
    return f


def _concrete(a):
    return not isinstance(a, Tracer)


def _divisor(rounds, every):
    return next((d for d in range(max(every, 1), 0, -1) if rounds % d == 0), 1)


_init = jax.jit(init)
_copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))


def _rounds(alg, clients, network, key, start, state, evaluate, schedule, *, rounds, every):
    def step(state, t):
        now = alg if schedule is None else _scheduled(schedule, alg, t, state.params)
        network_key, key_t = keys(key, t)
        net = network(t, network_key)
        out = now.round(state, clients, net, key_t)
        new, info = checks.returned(now, out, state, net)
        return new, _record(alg, clients.n, network, net, info, t)

    def block(state, t):
        state, history = jax.lax.scan(step, state, t + jnp.arange(every, dtype=t.dtype))
        return state, (history, () if evaluate is None else evaluate(state))

    first = start + every * jnp.arange(rounds // every, dtype=start.dtype)
    state, (history, evaluations) = jax.lax.scan(block, state, first)
    history = jax.tree.map(lambda a: a.reshape(rounds, *a.shape[2:]), history)
    return Run(state, history, evaluations)


def _record(alg, n, network, net, info, t):
    """A round as the history keeps it: means over who took part, of 0 for nobody.

    All n clients take part in the gradients of `init`, which are costs of round 0.
    """
    count, seconds = net.participants(), net.seconds(info)
    # one number per slot of the net, or one for each of those who took part
    wide = lambda a: jnp.asarray(a, jnp.result_type(float))
    sums = [jnp.where(net.here, wide(a), 0).sum() for a in (info.up, info.down, info.grads)]
    loss = jnp.where(count > 0, jnp.asarray(info.loss, jnp.result_type(float)), jnp.nan)
    if first := getattr(alg, "init_grads", 0.0):
        compute = jnp.asarray(speeds(network).compute)
        sums[2] = sums[2] + jnp.where(t == 0, n * first, 0)
        seconds = seconds + jnp.where(t == 0, first * compute.max(), 0)
        count = jnp.where(t == 0, n, count)
    up, down, grads = (a / jnp.maximum(count, 1) for a in sums)
    return History(loss, up, down, grads, info.aux, count, seconds)


_scan = jax.jit(_rounds, static_argnames=("rounds", "every"))
_chunk = jax.jit(_rounds, static_argnames=("rounds", "every"), donate_argnames="state")


def run(
    alg: Any,
    clients: Clients,
    network: Any,
    params: Params,
    key: Key,
    *,
    rounds: Count,
    start: Count = 0,
    state: Any = None,
    every: Count = 0,
    evaluate: Callable | None = None,
    schedule: Callable | None = None,
    chunk: Count = 0,
    callbacks: Sequence[Callable[[int, Run], bool | None]] = (),
    progress: bool = False,
    offload: bool = False,
    checkpoint: Any = None,
    writers: Sequence[Any] = (),
) -> Run:
    """`simulate` in chunks of rounds, with the host in between: progress, callbacks, early stops.

    The numbers are those of `simulate`, bit for bit. The state is donated from chunk to chunk; the
    caller's own arrays stay alive.

    With `checkpoint`, the same call goes on where the last one ended, however that ended, and
    returns all rounds, bit for bit those of a run that was never interrupted (on as many devices;
    on others, to rounding). It may ask for more rounds than the last one. Ctrl-C and SIGTERM then
    finish the chunk and save it first; twice, they stop at once.

    The same call is one with the same algorithm, clients, network, params, key, start, state,
    every, evaluate and schedule: fields by value, arrays by every byte, functions by their code
    (not its lines, comments and names of variables), constants, defaults, captured values, the
    globals that they name, and the functions and classes of one's own that they use; of libraries,
    and with another version of Python, by name. And x64, the backend, the default precision of
    matrix products and the kind of random numbers are the same. What differs is refused by its
    name, with both values; other versions of libraries are a warning. Where clients are (blocks,
    devices, the host), `chunk`, callbacks and writers do not count.

    Clients may be more than the device holds, for methods with cohorts or arrivals: who takes part
    is known in advance, so the device gets the clients of one chunk of rounds at a time. Examples
    on the host (`Clients.make(..., host=True)`) are read one chunk ahead, while the device works:
    it holds those of two chunks. Per-client state that is on the host (with `offload`, and always
    with such examples) is exchanged between chunks. The numbers are the same, to rounding.

    Args:
        alg, clients, network, params, key, rounds, start, state, every, evaluate, schedule: as for
            `simulate`.
        chunk: rounds per chunk, a multiple of `every`; 0 takes about a twentieth of `rounds`. A
            remainder compiles once more.
        callbacks: `callback(t, part)` after every chunk, with the number of the next round and the
            `Run` of this chunk; one that returns True stops the run. `part.state` is donated to
            the next chunk: copy what should outlive the callback.
        progress: show a progress bar.
        offload: keep the state of the clients (every leaf `[n, ...]` that `init` makes one row of
            per client) on the host: in `Run.state` and in callbacks these leaves are NumPy arrays,
            in callbacks the live ones. `evaluate` may not read them, a callback may.
        checkpoint: a folder, saved to after every chunk; or `jaxfl.Checkpoints(folder, ...)`, which
            says how often, after chunks, and how many are kept.
        writers: of metrics (`jaxfl.writers`), called between chunks only.

    Returns:
        `Run(state, history, evaluations)` of all rounds done, history on the host.

    Raises:
        ValueError: what `simulate` refuses; a chunk that is not a multiple of `every`; clients or
            state on the host with a net where everybody takes part in every round (graphs, events),
            with clients spread over devices, with an algorithm that reads other clients' rows than
            the cohort's, or whose `init` reads examples; NaN or inf among the examples; a
            checkpoint that is damaged, of another run, or beyond `rounds`, or in a run of several
            processes.
        RuntimeError: examples that cannot be read.
        OSError: a checkpoint that cannot be written.
        Interrupted: Ctrl-C or SIGTERM, after saving (a KeyboardInterrupt).

    Example:
        >>> problem = problems.quadratics(n=4)
        >>> run = jaxfl.run(
        ...     algorithms.FedAvg(lr=0.5), problem.clients(), networks.Uniform(4, 2),
        ...     jnp.zeros(5), jax.random.key(0), rounds=20, chunk=10,
        ...     callbacks=[lambda t, part: print(t, part.history.loss.shape)],
        ... )
        10 (10,)
        20 (10,)
    """
    _check_given(clients, key, state, evaluate, schedule)
    counts = {"rounds": rounds, "every": every, "start": start, "chunk": chunk}
    rounds, every, start, chunk = _counts(**counts)
    check(alg, clients, network, params, rounds=start + rounds)
    alg = strong(alg, params)
    _check_every(rounds, every, evaluate)
    every_ = every or rounds
    if chunk % (every or 1) or chunk < 0:
        raise ValueError(
            f"chunk must be a multiple of every = {every}, got {chunk}; for example "
            f"`chunk={5 * every}`"
        )
    evaluate, schedule = _callable(evaluate), _callable(schedule)
    parts, t, last, host = [], start, start + rounds, clients.host or offload
    with contextlib.ExitStack() as stack:
        if not host:
            memory.refuse(_init, alg, clients, params, key, rounds=rounds)
        saver, stop = None, lambda: False
        if checkpoint is not None:
            from jaxfl import checkpoint as disk

            given = alg, clients, network, params, key, start, state, every, evaluate, schedule
            saver = stack.enter_context(disk.Saver(checkpoint, last, host, *given))
            t, state, parts = saver.resume()
            stop = stack.enter_context(disk.graceful())
        chunk = chunk or _chunk_size(rounds, every or 1, saver.most if saver else 0)
        spans = [(r, min(chunk, t - r)) for r in range(start, t, chunk)]
        done = len(spans)
        spans += [(r, min(chunk, last - r)) for r in range(t, last, chunk)]
        if writers:
            from jaxfl.writers import _Metrics

            metrics = stack.enter_context(_Metrics(writers, every, t if saver else None, parts))
        else:
            metrics = None
        if t == last:
            return Run(state, *_joined(parts))
        if host:
            from jaxfl.stream import Feed

            feed = Feed(alg, clients, network, params, key, spans, state, evaluate, done)
            own = stack.enter_context(feed).state
        else:
            feed = None
            own = _init(alg, clients, params, key) if state is None else _copied(state)
        advance = stack.enter_context(_bar(rounds, progress))
        advance(t - start)
        for t, size in spans[done:]:
            here, world, own = (clients, network, own) if feed is None else feed.next()
            part = _chunk(
                alg,
                here,
                world,
                key,
                jnp.asarray(t, jnp.int32),
                own,
                evaluate,
                schedule,
                rounds=size,
                every=min(every_, size),
            )
            own = part.state if feed is None else feed.put(part.state)
            part = part._replace(state=own)
            parts.append(jax.device_get((part.history, part.evaluations)))
            t += size
            if metrics is not None:
                metrics.write(t, *parts[-1])
            advance(size)
            ended = any([callback(t, part) for callback in callbacks]) or t == last
            asked = stop()
            if saver is not None and (ended or asked or saver.due(t)):
                parts = [_joined(parts)]
                saver.save(t, own, *parts[0], stop=asked)
            if ended:
                break
    return Run(own, *_joined(parts))


def _joined(parts):
    """History and evaluations of all chunks."""
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


def _chunk_size(rounds, every, most=0):
    """The divisor of rounds, a multiple of every, nearest to a twentieth of the run from above;
    rather `most` if that is less."""
    sizes = [every * k for k in range(1, rounds // every + 1) if rounds % (every * k) == 0]
    size = min((s for s in sizes if 20 * s >= rounds), default=rounds)
    return min(size, max(most - most % every, every)) if most else size


@contextlib.contextmanager
def _bar(rounds, show):
    if not show:
        yield lambda size: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task("rounds", total=rounds)
        yield lambda size: bar.advance(task, size)


def _counts(**values):
    """As ints; a start may be traced."""
    return [whole(k, v) if _concrete(v) else v for k, v in values.items()]


def _check_every(rounds, every, evaluate):
    if every < 0 or rounds < 1 or (every and rounds % every):
        raise ValueError(
            f"rounds must be >= 1 and every must divide it, got rounds={rounds}, every={every}; "
            f"for example `every={_divisor(rounds, every)}`"
        )
    if (evaluate is None) != (every == 0):
        raise ValueError("pass `evaluate` and `every` together, such as `every=10`")
    for part in jax.tree.leaves(evaluate, is_leaf=lambda part: hasattr(part, "check")):
        if hasattr(part, "check"):  # of `jaxfl.metrics`, alone or in another
            part.check()


def _check_given(clients, key, state, evaluate, schedule):
    """Things of the wrong kind, each by name."""
    if not isinstance(clients, Clients):
        fix = "problem.clients()" if hasattr(clients, "clients") else "Clients.make(...)"
        raise ValueError(f"clients must be Clients, got {type(clients).__name__}; use `{fix}`")
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    new = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if dtype is None or not (new or (dtype == jnp.uint32 and shape)):
        raise ValueError(
            f"key must be a random key, got {shown(key)}; for example `jax.random.key(0)`"
        )
    if seeds := shape if new else shape[:-1]:
        raise ValueError(
            f"key holds {math.prod(seeds)} keys, and a run takes one; map the run over them: "
            "`jax.vmap(run)(keys)`"
        )
    if isinstance(state, Run):
        raise ValueError("state must be a state, got the whole Run; pass `state=run.state`")
    for name, f in (("evaluate", evaluate), ("schedule", schedule)):
        if f is not None and not callable(f):
            raise ValueError(
                f"{name} must be a function, got {shown(f)}; for example `{_FUNCTIONS[name]}`"
            )


_FUNCTIONS = {
    "evaluate": "evaluate=metrics.Evaluate(model, data.test)",
    "schedule": "schedule=scaled(lr=optax.cosine_decay_schedule(1.0, rounds))",
}


def strong(alg: Any, params: Params) -> Any:
    """Traced fields as strongly typed float32, or the parameters' dtype if wider.

    `lr=1`, `lr=1.0` and `lr=jnp.array(1.0)` would otherwise be three programs.
    """
    wide = jnp.result_type(jnp.float32, *(_dtype(a) for a in jax.tree.leaves(params)))
    return jax.tree.map(lambda a: jnp.asarray(a, wide), alg)


def _dtype(a):
    dtype = jnp.result_type(a)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32


def grid(alg: Any, **values: Any) -> Any:
    """Every combination of hyperparameters, stacked: `jax.vmap(run)(grid(FedProx, lr=[...]))`.

    The last name varies fastest. Every traced leaf, of components too, gets the leading axis, so
    that `jax.vmap` maps them all. Ranges are checked here: inside `vmap` nothing is left to check.

    Args:
        alg: an algorithm class, or an instance whose other fields are kept.
        values: for traced fields, one number or a list of them; for static fields, one value.

    Returns:
        The algorithm with leaves `[product of lengths, ...]`.

    Raises:
        ValueError: an unknown field (with the nearest), a list for a static field, values out of
            range.

    Example:
        >>> sweep = jaxfl.grid(algorithms.FedProx, lr=[0.1, 1.0], mu=[0.0, 0.01, 0.1])
        >>> print(sweep.lr, sweep.mu)
        [0.1 0.1 0.1 1.  1.  1. ] [0.   0.01 0.1  0.   0.01 0.1 ]
    """
    if not dataclasses.is_dataclass(alg):
        raise ValueError(
            f"alg must be an algorithm or its class, got {alg!r}; for example "
            "`grid(FedAdam(lr=0.1), lr=[0.1, 0.2])`"
        )
    fields = {f.name: f for f in dataclasses.fields(alg)}
    for name in values:
        if name not in fields:
            raise ValueError(_unknown(_name(alg), name, list(fields)))
    static = {k: v for k, v in values.items() if not _traced(fields[k]) or _component(v)}
    for name, value in static.items():
        if isinstance(value, list | tuple | np.ndarray):
            raise ValueError(
                f"{name} is static: it sets a shape or a trip count, one program per value. Run "
                f"one grid for each: `for {name} in {list(value)}: ...`"
            )
    lists = {k: np.atleast_1d(np.asarray(v)) for k, v in values.items() if k not in static}
    for name, value in lists.items():
        if value.size == 0 or not np.issubdtype(value.dtype, np.number):
            raise ValueError(
                f"{name} must be a number or a list of them, got {values[name]!r}; for example "
                f"`{name}=[0.1, 0.2]`"
            )
    product = list(itertools.product(*lists.values()))
    columns = dict(zip(lists, zip(*product, strict=True), strict=True)) if lists else {}
    stacked = {k: jnp.asarray(v, jnp.result_type(float)) for k, v in columns.items()}
    new = {**static, **stacked}
    alg = alg(**new) if isinstance(alg, type) else dataclasses.replace(alg, **new)
    check_ranges(alg)
    size = len(product)
    return jax.tree.map(
        lambda a: (
            jnp.broadcast_to(jnp.asarray(a, jnp.result_type(float)), (size, *jnp.shape(a)))
            if jnp.ndim(a) == 0
            else jnp.asarray(a)
        ),
        alg,
    )


def scaled(**schedules: Any) -> Callable[[Any, Scalar], Any]:
    """A schedule for `simulate` that multiplies hyperparameters by functions of the round.

    Args:
        schedules: by field, such as `lr=optax.cosine_decay_schedule(1.0, 500)`; any optax schedule
            is such a function.

    Returns:
        `schedule(alg, t) -> alg`.

    Example:
        >>> import optax
        >>> from jaxfl.simulate import scaled
        >>> schedule = scaled(lr=optax.linear_schedule(1.0, 0.0, 10))
        >>> float(schedule(algorithms.FedAvg(lr=2.0), 5).lr)
        1.0
    """

    for name, f in schedules.items():
        if not callable(f):
            raise ValueError(
                f"{name} must be a function of the round, got {shown(f)}; for example "
                f"`scaled({name}=optax.cosine_decay_schedule(1.0, rounds))`"
            )

    def schedule(alg, t):
        fields = {f.name: f for f in dataclasses.fields(alg)}
        for name in schedules:
            if name not in fields:
                raise ValueError(_unknown(_name(alg), name, [*fields]))
            if not _traced(fields[name]) or _component(getattr(alg, name)):
                raise ValueError(
                    f"{_name(alg)}.{name} is no traced number, and cannot change with the round; "
                    "scale one that is: `scaled(lr=...)`"
                )
        return alg.replace(**{name: getattr(alg, name) * f(t) for name, f in schedules.items()})

    return schedule


def _traced(field):
    return field.metadata.get("pytree_node", True)


_component, _name = checks.component, checks.name


def _unknown(what, name, known):
    return f"{what} has no field {name!r}{nearest(name, known)}"


def hyper(default: Any = dataclasses.MISSING, *, low: float = 0.0, high: float = np.inf) -> Any:
    """A traced hyperparameter; its range lives in the field's metadata and only there.

    Example:
        >>> from jaxfl.simulate import hyper
        >>> field = hyper(0.9, high=1.0)
        >>> field.default, field.metadata["high"]
        (0.9, 1.0)
    """
    return struct.field(default=default, metadata={"low": low, "high": high})


def count(default: int, *, low: int = 1) -> Any:
    """A static count: it sets a shape or a trip count, one program per value.

    Example:
        >>> algorithms.FedAvg(lr=0.1, steps=5).steps
        5
        >>> jaxfl.grid(algorithms.FedAvg(lr=0.1, steps=0))
        Traceback (most recent call last):
            ...
        ValueError: FedAvg.steps must be in [1, inf], got 0; for example `FedAvg(steps=1)`
    """
    return struct.field(pytree_node=False, default=default, metadata={"low": low})


def choice(*names: str) -> Any:
    """A static name, the first by default: one program per value.

    Example:
        >>> jaxfl.grid(algorithms.DSGD(lr=0.1, order="cta")).order
        'cta'
    """
    return struct.field(pytree_node=False, default=names[0], metadata={"names": names})


def check_ranges(alg: Any, *, single: bool = False) -> None:
    """Raises ValueError for a hyperparameter out of its range, of components too; tracers pass.

    Args:
        alg: an algorithm, a network, a component.
        single: of one run, where a hyperparameter is one number, also while it is traced.
    """
    for field in dataclasses.fields(alg):
        value = getattr(alg, field.name)
        if _component(value):
            drawn = type(value) is getattr(alg, "kind", None)  # nets, stacked over rounds
            check_ranges(value, single=single and not drawn)
            continue
        if value is None:  # off
            continue
        if _traced(field):
            checks.given(f"{_name(alg)}.{field.name}", value)
        names = field.metadata.get("names")
        if names and value not in names:
            raise ValueError(
                f"{_name(alg)}.{field.name} must be one of {names}, got {value!r}; for example "
                f"`{_name(alg)}({field.name}={names[0]!r})`"
            )
        if "low" not in field.metadata:
            continue
        if single and _traced(field):
            checks.number(
                f"{_name(alg)}.{field.name}", value, many=field.metadata.get("many", False)
            )
        if not _concrete(value):
            continue
        low, high = field.metadata["low"], field.metadata.get("high", np.inf)
        if not _traced(field) and not isinstance(value, int | np.integer):
            raise ValueError(
                f"{_name(alg)}.{field.name} must be an integer, got {value!r}; for example "
                f"`{_name(alg)}({field.name}={max(low, 1)})`"
            )
        array = np.asarray(value, float)
        if not ((array >= low) & (array <= high)).all():
            bad = array[~((array >= low) & (array <= high))].ravel()[0]
            fit = max(low, min(high, 0.1)) if _traced(field) else low
            raise ValueError(
                f"{_name(alg)}.{field.name} must be in [{low}, {high}], got {bad:g}; for example "
                f"`{_name(alg)}({field.name}={fit})`"
            )


def check(alg: Any, clients: Clients, network: Any, params: Params, *, rounds: int) -> None:
    """Raises ValueError where algorithm, network, clients and model do not fit together.

    What depends on values (ranges, spectra, schedules) is checked when they are concrete; under
    `jit` and `vmap` of the network there is nothing to look at.
    """
    _check_forms(alg, network)
    check_ranges(alg, single=True)
    needs, name = alg.needs, _name(alg)
    if network.kind is not needs.net:
        raise ValueError(
            f"{name} needs a network that makes {needs.net.__name__} nets, got {_name(network)}, "
            f"which makes {network.kind.__name__}; use {_EXAMPLES[needs.net.__name__]}"
        )
    if network.n != clients.n:
        raise ValueError(
            f"network is for {network.n} clients, clients holds {clients.n}; build it with "
            f"n={clients.n}"
        )
    check_network(network, rounds)
    if dataclasses.is_dataclass(network):
        check_ranges(network, single=True)
    _check_needs(needs, name, network)
    if all(_concrete(a) for a in jax.tree.leaves(network)) and needs.check is not None:
        with jax.ensure_compile_time_eval():  # also while the caller is being traced
            needs.check(alg, network)
    _check_model(clients, params)
    clients.check(params)


def _check_forms(alg, network):
    checks.form(alg, Needs)
    if not hasattr(network, "kind"):
        raise ValueError(
            f"network must be a network, got {type(network).__name__}; use "
            f"{_EXAMPLES[alg.needs.net.__name__]}"
        )


def _check_needs(needs, name, network):
    if needs.lossless and not network.lossless:
        raise ValueError(
            f"{name} does not survive lost links or absent nodes, got {_name(network)}; use the "
            f"network inside it: `{_name(network)}(...).network`"
        )
    if needs.static and not network.static:
        raise ValueError(
            f"{name} assumes a graph that never changes, got {_name(network)}; use a fixed one: "
            f'`graph("ring", {network.n})`'
        )
    if needs.rows and getattr(network, "column", 0):
        raise ValueError(
            f"{name} needs mixing weights whose rows sum to 1; for column-stochastic ones use "
            "push-sum: `SGP(lr=...)`"
        )
    if needs.columns and getattr(network, "sums", "") == "row":
        raise ValueError(
            f"{name} needs mixing weights whose columns sum to 1 (the mean must be kept), and of "
            f'{_name(network)} only rows do; use `weights="metropolis"`, or for lost one-way links '
            '`LinkFailures(network, rate, keep="column")`'
        )
    adversaries = [a.adversary for a in layers(network) if hasattr(a, "adversary")]
    if needs.broadcast and any(getattr(a, "held", False) for a in adversaries):
        raise ValueError(
            f"{name} keeps public copies, equal at all receivers; use an adversary that sends all "
            "the same, such as `SignFlip()`"
        )
    if needs.local and not all(a.local for a in adversaries):
        raise ValueError(
            f"{name} has no common round in which an adversary could see all messages; use a "
            "row-local one such as `SignFlip()`"
        )


_EXAMPLES = {
    "Cohort": "`Uniform(n, size)`",
    "Graph": '`graph("ring", n)`',
    "Arrivals": "`arrivals(n, buffer, rounds)`",
    "Events": "`poisson(graph, rounds)`",
    "Messages": "`gossip(graph, rounds)`",
}


def matrix(network: Any) -> np.ndarray | None:
    """The mixing matrix `[n, n]` of a fixed graph, however it is wrapped; None for any other."""
    if not getattr(network, "static", False) or network.kind.__name__ != "Graph":
        return None
    while not hasattr(network, "w"):
        if not hasattr(network, "network"):
            return None
        network = network.network
    w = jax.tree.map(np.asarray, network.w)  # on the host: what JAX does may be traced
    if isinstance(w, comm.Dense):
        return np.asarray(w.w, float)
    out, own = np.zeros((network.n, network.n)), np.arange(network.n)
    for k in range(w.w.shape[-1]):
        shifted = isinstance(w, comm.Shifts)
        heard = (own + w.shifts[k]) % w.n if shifted else w.idx[:, k]
        np.add.at(out, (own, heard), w.w[k] if shifted else w.w[:, k])
    return out


@jax.jit
def _losses(clients, params):
    """Losses of one client, and gradients for what they say of params; JAX keeps the trace."""

    def one(client, key):
        xi = client.draw(key)
        return client.losses(params, xi), client.grad(params, xi)

    return clients.each(one, key=jax.random.key(0))[0]


def _check_model(clients, params):
    """The loss must accept the model: shapes and dtypes, without computing anything."""

    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must be floating, got "
                f"{jnp.result_type(leaf)}; cast it: `x.astype(jnp.float32)`"
            )

    shape = lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a))
    data, params = jax.tree.map(shape, (clients.data, params))
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    few = dict(data=data, start=one, count=one, id=one, host=False, population=0)

    def losses(batch):
        return _losses.eval_shape(dataclasses.replace(clients, **few, batch=batch), params)

    try:
        tasks = {losses(batch).shape[2:] for batch in (2, 3)}
        if len(tasks) > 1:
            raise LossShapeError(
                "loss must return one number per example, shape (B,), not (B, B): somewhere [B, 1] "
                "meets [B]; drop the axis of size 1: `pred[:, 0] - y`"
            )
    except LossShapeError:
        raise
    except Exception as error:  # whatever the user's loss raises
        raise ValueError(
            f"loss does not accept these params and examples: {error}; check that params come "
            "from the same model: `params = model.init(key)`"
        ) from error
