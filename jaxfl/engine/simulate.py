"""One experiment as one program: a scan over rounds."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.engine import checks, devices, marks, memory
from jaxfl.engine.clients import Clients
from jaxfl.engine.contract import check
from jaxfl.engine.fields import _concrete, check_ranges, strong
from jaxfl.networks.checks import speeds
from jaxfl.types import Count, Key, Params, Scalar, fork, shown, whole


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
    """The marked state before the first round, its key apart from those of the rounds."""
    state = alg.init(params, clients, fork(key, "init"))
    checks.state(alg, state, clients.n)
    if clients.over is not None:
        state = devices.stay(state, clients.over)
    return jax.tree.map(jnp.copy, state)  # never the caller's arrays, so that it can be donated


def begin(alg: Any, clients: Clients, params: Params, key: Key, state: Any) -> Any:
    """The marked state from which a run goes on: a copy of the one given, else the first one."""
    if state is None:
        return _init(alg, clients, params, key)
    return marks.like(_init.eval_shape(alg, clients, params, key), _copied(state))


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
    state = begin(alg, clients, params, key, state)
    t = jnp.asarray(start, jnp.int32)
    given = (alg, clients, network, key, t, state, _callable(evaluate), _callable(schedule))
    plain = all(map(_concrete, jax.tree.leaves(given)))
    # Under a transformation buffers are not this call's to give away.
    run = (_chunk if plain else _scan)(*given, rounds=rounds, every=every or rounds)
    return run._replace(state=marks.plain(run.state))


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


def _divisor(rounds, every):
    return next((d for d in range(max(every, 1), 0, -1) if rounds % d == 0), 1)


_init = jax.jit(init)


_copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))


def _rounds(alg, clients, network, key, start, state, evaluate, schedule, *, rounds, every):
    def step(state, t):
        network_key, key_t = keys(key, t)
        net = network(t, network_key)
        seen = marks.pick(state, net)
        now = alg if schedule is None else _scheduled(schedule, alg, t, seen.params)
        out = now.round(seen, clients, net, key_t)
        new, info = checks.returned(now, out, seen, net)
        return marks.put(state, net, new), _record(alg, clients.n, network, net, info, t)

    def block(state, t):
        state, history = jax.lax.scan(step, state, t + jnp.arange(every, dtype=t.dtype))
        return state, (history, () if evaluate is None else evaluate(marks.plain(state)))

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
        checks.own(f)
        if f is not None and not callable(f):
            raise ValueError(
                f"{name} must be a function, got {shown(f)}; for example `{_FUNCTIONS[name]}`"
            )


_FUNCTIONS = {
    "evaluate": "evaluate=metrics.Evaluate(model, data.test)",
    "schedule": "schedule=scaled(lr=optax.cosine_decay_schedule(1.0, rounds))",
}
