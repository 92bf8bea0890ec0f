"""What the tables of tests share: the problem, recorded worlds, recorded samples."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from oracles.problem import whole

from jaxfl import struct
from jaxfl.engine import comm, marks
from jaxfl.engine.client import Client
from jaxfl.engine.clients import Clients
from jaxfl.engine.simulate import Run, keys, simulate
from jaxfl.networks import Events, Graph, Messages

N, D, ROUNDS = 8, 5, 20
KEY = jax.random.key(7)
COUNTS = np.array([3, 7, 4, 10, 5, 6, 3, 8])


def flat(params):
    """Any parameter tree as one vector, leaves in order."""
    return jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(params)])


def squares(params, examples, key):
    """Least squares on whatever tree the parameters are."""
    return 0.5 * jnp.square(examples["a"] @ flat(params) - examples["b"])


def make_problem(seed=0):
    """Heterogeneous least squares, unequal clients, rows in a shuffled order."""
    rng = np.random.default_rng(seed)
    size = COUNTS.sum()
    a, b = rng.normal(size=(size, D)), rng.normal(size=size)
    order = rng.permutation(size)
    start = np.cumsum(COUNTS) - COUNTS
    for i, (s, c) in enumerate(zip(start, COUNTS)):
        b[order[s : s + c]] += i - 3  # every client pulls elsewhere
    return a, b, (order, start, COUNTS)


A, B, PARTITION = make_problem()
ROWS = [PARTITION[0][s : s + c] for s, c in zip(PARTITION[1], COUNTS)]
CLIENTS = Clients.make({"a": A, "b": B}, PARTITION, squares, batch=3)
X0 = jnp.asarray(np.linspace(-1, 1, D))


@struct.dataclass
class Tape:
    """A world played back: the nets of every round, stacked."""

    nets: Any
    kind: Any = struct.field(pytree_node=False)
    n: int = struct.field(pytree_node=False)
    static: bool = struct.field(pytree_node=False)
    lossless: bool = struct.field(pytree_node=False)
    column: int = struct.field(pytree_node=False)

    def __call__(self, t, key):
        return jax.tree.map(lambda a: a[t], self.nets)


def record_world(network, rounds=ROUNDS, key=KEY):
    """The nets that `simulate` would meet under `key`."""
    play = jax.jit(jax.vmap(lambda t: network(t, keys(key, t)[0])))
    nets = play(jnp.arange(rounds, dtype=jnp.int32))
    return Tape(
        nets,
        network.kind,
        network.n,
        network.static,
        network.lossless,
        getattr(network, "column", 0),
    )


def row(tape, t):
    """The net of round t."""
    return jax.tree.map(lambda a: a[t], tape.nets)


def nobody(net):
    """The net of a round in which nobody takes part and nothing happens."""
    send = net.send.replace(live=jnp.zeros_like(net.send.live))
    if isinstance(net, Graph):
        near = comm.to_near(net.w)
        own = jnp.broadcast_to(jnp.arange(N)[:, None] == near.idx, near.w.shape)
        first = own & (jnp.arange(near.w.shape[1])[None] == 0)
        near = near.replace(w=first.astype(near.w.dtype))
        return net.replace(w=near, active=jnp.zeros_like(net.active), send=send)
    if isinstance(net, Events):
        none = lambda a: jnp.full_like(a, N)
        return net.replace(grad=none(net.grad), i=none(net.i), j=none(net.j), send=send)
    if isinstance(net, Messages):
        idle = jnp.full_like(net.i, N)
        return net.replace(i=idle, sent=jnp.zeros_like(net.sent), send=send)
    return net.replace(idx=jnp.full_like(net.idx, N), weight=jnp.zeros_like(net.weight), send=send)


class _Log:
    """While active, `Clients.each` and `mean` also return the samples their function drew."""

    def __init__(self):
        self.passes, self.draws, self.nested = [], [], False

    def __enter__(self):
        self.old = Clients.each, Clients.mean, Client.draws, Client.epochs, Client.all
        each, mean, *sources = self.old
        log = self

        def logged(source):
            def draw(client, *args):
                xi = source(client, *args)
                if source is not sources[0] or not args[1:] or args[1] != 0:
                    log.draws.append((xi.index, xi.weight))
                return xi

            return draw

        def outer(apply, split):
            def call(self, f, *stacked, **kw):
                if log.nested:
                    return apply(self, f, *stacked, **kw)

                def g(*args):
                    log.draws = []
                    out = f(*args)
                    return split(out, tuple(log.draws))

                log.nested = True
                try:
                    result, drawn = apply(self, g, *stacked, **kw), None
                finally:
                    log.nested = False
                if apply is each:
                    result, drawn = result
                else:
                    mean_, memory, (rest, drawn) = result
                    result = mean_, memory, rest
                log.passes.append(drawn)
                return result

            return call

        Clients.each = outer(each, lambda out, draws: (out, draws))
        Clients.mean = outer(mean, lambda out, draws: (out[0], (out[1], draws)))
        for name, source in zip(("draws", "epochs", "all"), sources):
            setattr(Client, name, logged(source))
        return self

    def __exit__(self, *_):
        Clients.each, Clients.mean, Client.draws, Client.epochs, Client.all = self.old


@struct.dataclass
class Recorded:
    """An algorithm whose info also carries the samples of the round."""

    alg: Any
    log: bool = struct.field(pytree_node=False, default=True)

    @property
    def needs(self):
        needs = self.alg.needs
        check = needs.check and (lambda alg, network: needs.check(alg.alg, network))
        return dataclasses.replace(needs, check=check)

    @property
    def init_grads(self):
        return getattr(self.alg, "init_grads", 0.0)

    def init(self, params, clients, key):
        with _Log() as log:
            state = self.alg.init(params, clients, key)
        return _WithSamples(state, tuple(log.passes))

    def round(self, state, clients, net, key):
        if not self.log:  # samples drawn inside a loop over events cannot come out of it
            new, info = self.alg.round(state.state, clients, net, key)
            return state.replace(state=new), info._replace(aux=(info.aux, ()))
        with _Log() as log:
            new, info = self.alg.round(state.state, clients, net, key)
        return _WithSamples(new, state.init), info._replace(aux=(info.aux, tuple(log.passes)))


@struct.dataclass
class _WithSamples:
    state: Any
    init: Any

    @property
    def params(self):
        return self.state.params


def play(alg, tape, *, clients=CLIENTS, params=X0, rounds=ROUNDS, key=KEY, **options) -> Run:
    """One recorded run; programs are shared by everything that differs in values only."""
    alg = Recorded(alg, log=not issubclass(tape.kind, Events))
    return simulate(alg, clients, tape, params, key, rounds=rounds, **options)


def step(alg, state, net, clients=CLIENTS, key=KEY):
    """One round as the engine runs it, of a plain state."""
    marked = marks.like(jax.eval_shape(lambda: alg.init(X0, clients, key)), state)
    new, info = alg.round(marks.pick(marked, net), clients, net, key)
    return marks.plain(marks.put(marked, net, new)), info


def oracle_record(run, tape, rounds=ROUNDS):
    """What was drawn, as plain arrays, in the form the oracles take: (init, rounds)."""
    starts = np.asarray(PARTITION[1])

    def rows(ids, passes):
        out = []
        inside = lambda client, index: np.minimum(index, COUNTS[client][:, None, None] - 1)
        for draws in passes:
            ids_ = ids if len(draws) and len(ids) == len(draws[0][0]) else np.arange(N)
            client = np.minimum(ids_, N - 1)
            out.append(
                [
                    (
                        PARTITION[0][starts[client][:, None, None] + inside(client, index)],
                        np.asarray(weight),
                    )
                    for index, weight in draws
                ]
            )
        return out

    record = []
    for t in range(rounds):
        passes = jax.tree.map(lambda a, t=t: np.asarray(a)[t], run.history.aux[1])
        ids, entry = _entry(row(tape, t))
        record.append(entry | {"samples": rows(ids, passes)})
    init = {"samples": rows(np.arange(N), jax.tree.map(np.asarray, run.state.init))}
    return init, record


def full_record(tape, rounds, steps):
    """The same for problem Q, of whose clients each has one example: nothing is drawn."""
    nets = jax.tree.map(np.asarray, tape.nets)
    entries = [_entry(jax.tree.map(lambda a, t=t: a[t], nets)) for t in range(rounds)]
    return [entry | {"samples": whole(ids % N, steps)} for ids, entry in entries]


def _entry(net):
    """Of a round: who draws samples, and what the world did, as plain arrays."""
    entry: dict[str, Any] = {}
    if isinstance(net, Graph):
        ids = np.arange(N)
        entry["W"] = np.asarray(comm.to_dense(net.w))
        entry["active"] = np.asarray(net.active)
        if isinstance(net.w, comm.Near):
            entry["received"] = np.asarray(net.w.idx)
        entry["byz"] = np.asarray(net.send.byzantine)
    elif isinstance(net, Events):
        ids = np.arange(N)
        entry["events"], entry["end"] = event_list(net), float(net.end)
    elif isinstance(net, Messages):
        ids = np.ravel(net.i)
        entry["messages"] = message_list(net)
        entry["byz"] = np.asarray(net.send.byzantine)
    else:
        ids = np.asarray(net.idx)
        entry["idx"], entry["weight"] = ids, np.asarray(net.weight)
        entry["byz"] = np.asarray(net.send.byzantine)
        if hasattr(net, "age"):
            entry["age"] = np.asarray(net.age)
    return ids, entry


def event_list(net):
    """A round's events from its waves, in time order: (time, kind, i, j)."""
    grads = [
        (float(t), "grad", int(i), -1)
        for t, i in zip(np.ravel(net.at), np.ravel(net.grad))
        if i < net.n
    ]
    exchanges = [
        (float(t), "comm", int(i), int(j))
        for t, i, j in zip(np.ravel(net.when), np.ravel(net.i), np.ravel(net.j))
        if i < net.n
    ]
    return sorted(grads + exchanges)


def message_list(net):
    """A round's arrivals from its waves, in order: (number, sender, receiver, left, slot)."""
    fields = (np.ravel(a).tolist() for a in (net.number, net.j, net.i, net.left))
    rows = [(*values, slot) for slot, values in enumerate(zip(*fields))]
    return sorted(row for row in rows if row[2] < net.n)


def relabelled(tape, clients, p):
    """The same world with clients permuted: position q now holds who was at p[q]."""
    inverse = np.argsort(p)
    moved = clients.replace(start=clients.start[p], count=clients.count[p], id=clients.id[p])
    nets = tape.nets
    if issubclass(tape.kind, Graph):
        near = jax.vmap(comm.to_near)(nets.w) if not isinstance(nets.w, comm.Near) else nets.w
        near = comm.Near(jnp.asarray(inverse)[near.idx[:, p]], near.w[:, p], near.back[:, p])
        send = nets.send.replace(
            byzantine=nets.send.byzantine[:, p], id=nets.send.id[:, p], live=nets.send.live[:, p]
        )
        nets = nets.replace(w=near, active=nets.active[:, p], send=send, sent=nets.sent[:, p])
    elif issubclass(tape.kind, Events):
        to = jnp.asarray(np.append(inverse, N), jnp.int32)
        send = jax.tree.map(lambda a: a[:, p], nets.send)
        nets = nets.replace(
            grad=to[nets.grad], i=to[nets.i], j=to[nets.j], rest=nets.rest[:, p], send=send
        )
    elif issubclass(tape.kind, Messages):
        to = jnp.asarray(np.append(inverse, N + np.arange(nets.slots + 1)), jnp.int32)
        send = jax.tree.map(lambda a: a[:, p] if a.ndim > 1 else a, nets.send)
        names = ("i", "j", "source")
        nets = nets.replace(
            sent=nets.sent[:, p], send=send, **{k: to[getattr(nets, k)] for k in names}
        )
    else:
        to = jnp.asarray(np.append(inverse, N), jnp.int32)
        nets = nets.replace(idx=to[nets.idx])
    return dataclasses.replace(tape, nets=nets), moved
