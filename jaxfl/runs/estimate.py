"""The memory of a run in advance."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxfl import struct
from jaxfl.engine import devices, memory
from jaxfl.engine.clients import Clients
from jaxfl.engine.memory import _bytes, _item, _refuse, _size, carried, opened
from jaxfl.types import Count, Params, whole

_MARGIN = 1.08  # of activations: XLA packs buffers that overlap in time with gaps


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes that a run needs on each device, by what they are for."""

    data: int  # examples, network, initial model, what `evaluate` holds
    state: int  # at the end, of all runs
    history: int  # and evaluations
    activations: int  # all else: gradients, messages, copies of the state
    block: int  # clients at once, the least where there are several loops over clients
    limit: int | None  # what the device has, if it is known
    exact: bool  # whether XLA said so, for its compiled program

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return self.data + self.state + self.history + self.activations

    def check(self) -> None:
        """Raises MemoryError if this is more than the device has."""
        _refuse(self.total, self.limit, f"the run needs {self}")

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {_size(getattr(self, name))}"
            for name in ("data", "state", "history", "activations")
        )
        limit = "" if self.limit is None else f" of {_size(self.limit)}"
        return f"{_size(self.total)}{limit}: {parts}; {self.block} clients at once"


def estimate(
    alg: Any,
    clients: Clients,
    network: Any,
    params: Params,
    *,
    rounds: Count,
    every: Count = 0,
    evaluate: Callable | None = None,
    schedule: Callable | None = None,
    runs: Count = 1,
    exact: bool = True,
) -> Estimate:
    """What `simulate` will need, before it runs: nothing is computed, nothing allocated.

    Data, state and history follow from shapes. Activations are what XLA reports of the compiled
    program; or, without compiling, the most that is alive at once in the program as JAX traces it,
    chains of elementwise operations counted as one.

    Args:
        alg, clients, network, params, rounds, every, evaluate, schedule: as for `simulate`.
        runs: how many `jax.vmap` of a `grid` runs at once.
        exact: compile. What is traced takes a second instead; on the CPU it is mostly within a
            fifth of XLA's total, and up to two fifths above for methods of several states.

    Returns:
        `Estimate`; its `check()` refuses what does not fit, and `print` shows it.

    Example:
        >>> problem = problems.least_squares(n=100, m=50, d=20)
        >>> need = jaxfl.estimate(
        ...     algorithms.Scaffold(lr=0.1), problem.clients(), networks.Uniform(100, 10),
        ...     jnp.zeros(20, jnp.float32), rounds=1000, exact=False,
        ... )
        >>> need.data > 8000, need.total > need.state
        (True, True)
    """
    from jaxfl.engine.fields import strong
    from jaxfl.engine.simulate import _callable, _rounds, init

    rounds, every, runs = (
        whole(k, v) for k, v in (("rounds", rounds), ("every", every), ("runs", runs))
    )
    alg, key = strong(alg, params), jax.random.key(0)
    start = lambda clients: init(alg, clients, params, key)
    state, share = jax.eval_shape(start, clients), 1
    if clients.over is not None:
        share = devices.along(clients.over)
        state = devices.placed(state, clients.over)
    if runs > 1:
        wide = lambda a: jax.ShapeDtypeStruct((runs, *jnp.shape(a)), jnp.result_type(a))
        alg = jax.tree.map(wide, alg)

    def program(alg, clients, network, params, key, state, evaluate, schedule):
        t, last = jnp.int32(0), (evaluate, schedule)
        chunk = {"rounds": rounds, "every": every or rounds}
        return _rounds(alg, clients, network, key, t, state, *last, **chunk)

    every_run = program if runs == 1 else jax.vmap(program, in_axes=(0, *(None,) * 7))
    evaluate, schedule = _callable(evaluate), _callable(schedule)
    values = (network, params, key, state, evaluate, schedule)
    _BLOCKS.clear()
    watched = _Watched(**{f.name: getattr(clients, f.name) for f in dataclasses.fields(clients)})
    jaxpr, out = jax.make_jaxpr(every_run, return_shape=True)(alg, watched, *values)
    block = min(_BLOCKS, default=clients.n)
    data, history = _bytes((clients, network, params, evaluate)), _bytes(out[1:])
    before, after = (_bytes(a) // share for a in (state, out.state))
    if exact:
        report: Any = jax.jit(every_run).lower(alg, clients, *values).compile().memory_analysis()
        made = report.temp_size_in_bytes + report.output_size_in_bytes - history
        rest = before + made - after
    else:
        rest = int(_MARGIN * (before + (_peak(jaxpr.jaxpr) - history) / share) - after)
    return Estimate(data, after, history, max(0, rest), block, memory.limit(), exact)


_BLOCKS: list[int] = []


@struct.dataclass
class _Watched(Clients):
    """Clients that write down which blocks they choose."""

    def _block(self, *given):
        _BLOCKS.append(block := super()._block(*given))
        return block


# What is alive at once ---------------------------------------------------------------------------

_SAME = {"reshape", "squeeze", "expand_dims", "bitcast_convert_type", "copy", "copy_p"}


_SAME |= {"stop_gradient", "sharding_constraint", "random_wrap", "random_unwrap"}


# What reads and writes whole arrays; all else is fused into what uses it.
_WHOLE = {"dot_general", "conv_general_dilated", "gather", "scatter", "scatter-add", "sort"}


_WHOLE |= {"cumsum", "cumlogsumexp", "cummax", "scan", "while", "cond", "top_k", "random_bits"}


_WHOLE |= {"dynamic_update_slice", "threefry2x32", "reduce_window", "pad", "concatenate"}


_REDUCED = {"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_prod"}


_REDUCED |= {"argmax", "argmin"}


# Not computed again for every use.
_COSTLY = {"exp", "tanh", "log", "div", "rsqrt", "sqrt", "logistic", "log1p", "erf", "pow", "sin"}


_COSTLY |= {"cos", "rem", "expm1"}


_NOT_IN_PLACE = {"dot_general", "conv_general_dilated", "gather", "sort"} | _REDUCED


class _Buffer:
    """One value of a program."""

    def __init__(self, size, const=None):
        self.size = size
        self.const = const  # its value, if it is one number known in advance


class _Step(NamedTuple):
    """One operation of a program."""

    name: str
    takes: list[Any]
    gives: list[Any]
    params: dict[str, Any]


def _peak(jaxpr, carried=()):
    """Bytes of what is alive at once beyond the inputs, results included.

    Args:
        jaxpr: the program.
        carried: positions of inputs whose memory the results may take, as in a loop.
    """
    env = {v: _Buffer(_item(v.aval)) for v in (*jaxpr.constvars, *jaxpr.invars)}
    inputs = [env[v] for v in jaxpr.invars]
    steps: list[_Step] = []
    _flatten(jaxpr, env, steps)
    results = {env[v] for v in jaxpr.outvars if not isinstance(v, Literal)}
    steps, same = _live(steps, results), {}
    for step in steps:
        if step.name in _SAME and step.takes[0] is not None:
            same[step.gives[0]] = step.takes[0]

    def origin(a):
        while a in same:
            a = same[a]
        return a

    results = {origin(a) for a in results}
    stored = _stored(steps, origin, results) | set(env.values()) & set(inputs)
    sources: dict[Any, set] = {}  # stored values that a fused one is made from
    reads, last = [], {}
    for k, step in enumerate(steps):
        used = set()
        for a in step.takes:
            if a is not None:
                used |= {origin(a)} if origin(a) in stored else sources.get(origin(a), set())
        reads.append(used)
        sources |= {a: used for a in step.gives if a not in stored and a not in same}
        if stored.intersection(step.gives):
            last |= dict.fromkeys(used, k)
    last |= dict.fromkeys(results, len(steps))
    alive = {inputs[i]: inputs[i].size for i in carried if inputs[i] not in results}
    alive = {a: size for a, size in alive.items() if a in last}
    live = base = most = sum(alive.values())
    for k, step in enumerate(steps):
        new = [a for a in step.gives if a in stored]
        if not new:
            continue
        dying = [a for a in reads[k] if last[a] == k and a in alive]
        added = sum(a.size for a in new) - _in_place(step, dying, new, origin)
        most = max(most, live + added + _inside(step))
        live -= sum(alive.pop(a) for a in dying)
        alive |= {a: a.size for a in new if last.get(a, -1) > k}
        live += sum(a.size for a in new if last.get(a, -1) > k)
    return most - base


def _flatten(jaxpr, env, steps):
    """The operations in order, calls inlined and choices of constants made."""
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        takes = [None if isinstance(v, Literal) else env[v] for v in eqn.invars]
        consts = [_constant(v, a) for v, a in zip(eqn.invars, takes)]
        inner = opened(params.get("jaxpr", params.get("call_jaxpr")))
        if name == "scan":
            params = params | {"carried": carried(eqn)}
        elif inner is not None and name not in ("reduce", "reduce_window"):
            own = {v: _Buffer(0) for v in inner.constvars}
            for v, a, const in zip(inner.invars, takes, consts):
                own[v] = _Buffer(0, const) if a is None else a
            _flatten(inner, own, steps)
            for v, a in zip(eqn.outvars, inner.outvars):
                env[v] = _Buffer(_item(v.aval)) if isinstance(a, Literal) else own[a]
            continue
        if name == "select_n" and consts[0] is not None and takes[1 + int(consts[0])] is not None:
            env[eqn.outvars[0]] = takes[1 + int(consts[0])]
            continue
        keeps = name in _SAME or name in ("broadcast_in_dim", "convert_element_type", "transpose")
        for v in eqn.outvars:
            env[v] = _Buffer(_item(v.aval), consts[0] if keeps else None)
        if name == "concatenate" and len(takes) < 3:
            name = "roll"  # fused, other than many pieces
        steps.append(_Step(name, takes, [env[v] for v in eqn.outvars], params))


def _constant(v, a):
    if not isinstance(v, Literal):
        return a.const
    return v.val if np.ndim(v.val) == 0 else None


def _live(steps, results):
    """The operations that the results need."""
    needed, kept = set(results), []
    for step in reversed(steps):
        if needed.intersection(step.gives):
            kept.append(step)
            needed |= {a for a in step.takes if a is not None}
    return kept[::-1]


def _stored(steps, origin, results):
    """The values that get memory of their own."""
    whole, users = set(), {}
    for k, step in enumerate(steps):
        for a in step.takes:
            if a is not None and step.name not in _SAME:
                users.setdefault(origin(a), set()).add(k)
                if step.name in _WHOLE:
                    whole.add(origin(a))
    stored, costly = set(), set()
    for step in steps:
        if step.name in _WHOLE | _REDUCED:
            stored.update(step.gives)
        elif step.name not in _SAME:
            takes = [origin(a) for a in step.takes if a is not None]
            again = step.name in _COSTLY or costly.intersection(takes) - stored
            fills = step.name in ("iota", "broadcast_in_dim")
            for a in step.gives:
                if again:
                    costly.add(a)
                shared = again and len(users.get(a, ())) > 1
                filled = fills and all(b.size < a.size for b in takes)
                if a in results or ((a in whole or shared) and not filled):
                    stored.add(a)
    return stored


def _in_place(step, dying, new, origin):
    """Bytes of results that take the memory of operands that nobody needs any more."""
    if step.name in _NOT_IN_PLACE:
        return 0
    if step.name == "scan":
        at = step.params["carried"]
        starts = {origin(step.takes[i]) for i in at if step.takes[i] is not None}
        dying, new = [a for a in dying if a in starts], step.gives[: len(at)]
    free, taken = [a.size for a in dying], 0
    for a in new:
        if a.size in free:
            free.remove(a.size)
            taken += a.size
    return taken


def _inside(step):
    """Bytes that a loop or a branch needs besides its results."""
    if step.name == "scan":
        return _peak(opened(step.params["jaxpr"]), step.params["carried"])
    if step.name == "while":
        return _peak(opened(step.params["body_jaxpr"]))
    if step.name == "cond":
        return max(_peak(opened(branch)) for branch in step.params["branches"])
    return 0
