"""The contract: what an algorithm is, what it needs, and what fits together."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.engine import checks, comm
from jaxfl.engine.client import LossShapeError
from jaxfl.engine.clients import Clients
from jaxfl.engine.fields import _concrete, _name, check_ranges
from jaxfl.networks.checks import check as check_network
from jaxfl.networks.checks import layers
from jaxfl.types import Info, Key, Params, Stacked


@runtime_checkable
class Algorithm(Protocol):
    """What every algorithm is: a frozen pytree of hyperparameters with two pure methods."""

    def init(self, params: Params, clients: Clients, key: Key) -> Any:
        """The state before the first round."""
        ...

    def round(self, state: Any, clients: Clients, net: Any, key: Key) -> tuple[Any, Info]:
        """One round."""
        ...


@runtime_checkable
class State(Protocol):
    """What every state has; a NamedTuple, so that it is a pytree."""

    @property
    def params(self) -> Params:
        """The deployable model `[...]`, or one per node `[n, ...]`."""
        ...


@runtime_checkable
class Personal(Protocol):
    """What a state has beside `params` where every client has a model of its own."""

    @property
    def personal(self) -> "Models":
        """The clients' models."""
        ...


@dataclasses.dataclass(frozen=True)
class Models:
    """A model per client, made from the client's row when somebody asks for it.

    Args:
        rows: what is kept of each client, leaves `[n, ...]`: its model, or a part of it.
        make: `make(row) -> params`; by default the row is the model.
        predict: `predict(model, params, x) -> outputs` for clients that do not predict by one
            model; by default `model.apply(params, x)`.

    Example:
        >>> from jaxfl.engine.contract import Models
        >>> heads = Models({"head": jnp.arange(3.0)}, lambda row: {"body": 7.0} | row)
        >>> len(heads), heads[2]["head"].item(), heads[2]["body"]
        (3, 2.0, 7.0)
    """

    rows: Stacked
    make: Callable[[Any], Params] = lambda row: row
    predict: Callable[[Any, Params, Any], Any] = lambda model, params, x: model.apply(params, x)

    def __len__(self) -> int:
        return jax.tree.leaves(self.rows)[0].shape[0]

    def __getitem__(self, i: Any) -> Params:
        """The model of client i."""
        return self.make(jax.tree.map(lambda a: a[i], self.rows))

    def all(self) -> Stacked:
        """All of them, leaves `[n, ...]`."""
        return jax.vmap(self.make)(self.rows)


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
            f"which makes {network.kind.__name__}; use {needs.net.example}"
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
            f"network must be a network, got {type(network).__name__}; use {alg.needs.net.example}"
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
            f'`topology("ring", {network.n})`'
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


def matrix(network: Any) -> np.ndarray | None:
    """The mixing matrix `[n, n]` of a fixed graph, however it is wrapped; None for any other."""
    if not getattr(network, "static", False):
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
