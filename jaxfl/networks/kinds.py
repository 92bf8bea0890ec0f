"""How a network of every kind is made from a configuration: one record for each kind of net.

Another kind is a class of nets, with the class attributes that `jaxfl.networks.nets` names, and a
record here; all else, from `simulate` to `sweep`, asks these.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxfl.networks import graphs
from jaxfl.networks.buffers import arrivals
from jaxfl.networks.clocks import dadao_rates, poisson
from jaxfl.networks.cohorts import Uniform
from jaxfl.networks.failures import Churn, LinkFailures
from jaxfl.networks.messages import gossip
from jaxfl.networks.nets import Arrivals, Cohort, Events, Graph, Links, Messages
from jaxfl.networks.timelines import alike
from jaxfl.networks.topologies import TIME_VARYING, level, topology


class Kind(NamedTuple):
    """What a configuration must know of one kind of net.

    Example:
        >>> from jaxfl.networks.kinds import KINDS
        >>> KINDS[networks.Arrivals].settings
        ('cohort',)
    """

    settings: tuple[str, ...]  # fields of `Config` that `make` reads, but for rounds and graph
    make: Callable[..., Any]  # (config, needs, n, on, seed) -> network; on: a graph's name, options


def _uniform(config, needs, n, on, seed):
    return Uniform(n, config.cohort, _links(config))


def _graph(config, needs, n, on, seed):
    made = topology(on.name, n, weights=config.weights, links=_links(config), **on.options)
    keep = "row" if needs.rows or not needs.columns else "column"  # of links that fail one way
    made = LinkFailures(made, config.failures, keep) if config.failures else made
    return Churn(made, 1 - config.churn, keep) if config.churn else made


def _arrivals(config, needs, n, on, seed):
    return arrivals(n, config.cohort, config.rounds, seed=seed)


def _poisson(config, needs, n, on, seed):
    fixed = _fixed(on, n)
    return poisson(fixed, config.rounds, edge_rates=dadao_rates(fixed)["rate"], seed=seed)


def _gossip(config, needs, n, on, seed):
    delay = round(100 * config.latency)  # a round takes a second
    return gossip(
        _fixed(on, n),
        config.rounds,
        delay=(delay, delay),
        drop=config.failures,
        online=1 - config.churn,
        seed=seed,
    )


def _links(config):
    return Links(*(getattr(config, name) for name in _LINKS))


def _fixed(on, n):
    if on.name in TIME_VARYING:
        raise ValueError(
            f"{on.name} changes every round; without common rounds a graph is fixed: 'ring'"
        )
    return graphs.make(on.name, n, **on.options)


_LINKS = ("compute", "latency", "up", "down")


KINDS: dict[type, Kind] = {
    Cohort: Kind(("cohort", *_LINKS), _uniform),
    Graph: Kind(("weights", "failures", "churn", *_LINKS), _graph),
    Arrivals: Kind(("cohort",), _arrivals),
    Events: Kind((), _poisson),
    Messages: Kind(("failures", "churn", "latency"), _gossip),
}


def stackable(networks: Sequence[Any]) -> list[Any]:
    """Networks of one kind, as of several seeds, in one shape: stack them, and `vmap` the run.

    Example:
        >>> from jaxfl.networks.kinds import stackable
        >>> several = [networks.topology("erdos_renyi", 8, seed=s) for s in range(3)]
        >>> jax.tree.map(lambda *leaves: jnp.stack(leaves), *stackable(several)).n
        8
    """
    return level(networks) if networks[0].kind.common else alike(networks)
