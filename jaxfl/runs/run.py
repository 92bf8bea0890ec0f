"""Runs in chunks of rounds, with the host in between."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.engine import marks, memory
from jaxfl.engine.clients import Clients
from jaxfl.engine.contract import check
from jaxfl.engine.fields import strong
from jaxfl.engine.simulate import (
    Run,
    _callable,
    _check_every,
    _check_given,
    _chunk,
    _counts,
    _init,
    begin,
)
from jaxfl.types import Count, Key, Params


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
        offload: keep the rows of clients (what `init` marks with `clients.rows`) on the host: in
            `Run.state` and in callbacks these leaves are NumPy arrays, in callbacks the live ones.
            `evaluate` may not read them, a callback may.
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
            from jaxfl.runs import checkpoint as disk

            given = alg, clients, network, params, key, start, state, every, evaluate, schedule
            saver = stack.enter_context(disk.Saver(checkpoint, last, host, *given))
            t, state, parts = saver.resume()
            stop = stack.enter_context(disk.graceful())
        chunk = chunk or _chunk_size(rounds, every or 1, saver.most if saver else 0)
        spans = [(r, min(chunk, t - r)) for r in range(start, t, chunk)]
        done = len(spans)
        spans += [(r, min(chunk, last - r)) for r in range(t, last, chunk)]
        if writers:
            from jaxfl.runs.writers import _Metrics

            metrics = stack.enter_context(_Metrics(writers, every, t if saver else None, parts))
        else:
            metrics = None
        if t == last:
            return Run(state, *_joined(parts))
        if host:
            from jaxfl.runs.stream import Feed

            feed = Feed(alg, clients, network, params, key, spans, state, evaluate, done)
            own = stack.enter_context(feed).state
        else:
            feed = None
            own = begin(alg, clients, params, key, state)
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
            part = part._replace(state=marks.plain(own))
            parts.append(jax.device_get((part.history, part.evaluations)))
            t += size
            if metrics is not None:
                metrics.write(t, *parts[-1])
            advance(size)
            ended = any([callback(t, part) for callback in callbacks]) or t == last
            asked = stop()
            if saver is not None and (ended or asked or saver.due(t)):
                parts = [_joined(parts)]
                saver.save(t, part.state, *parts[0], stop=asked)
            if ended:
                break
    return Run(marks.plain(own), *_joined(parts))


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
