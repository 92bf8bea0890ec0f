"""DADAO."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from optax import tree

from jaxfl import struct
from jaxfl.engine import comm
from jaxfl.engine.contract import Needs
from jaxfl.engine.fields import choice, hyper
from jaxfl.networks import Events
from jaxfl.types import Scalar, Stacked, Work, fork


@struct.dataclass
class DADAO:
    """Accelerated decentralised optimisation by asynchronous gradients and exchanges.

    Between events every node flows for the time since its last one,
    x' = eta (X - x), X' = eta (x - X), y' = alpha (Y - y), Y' = -theta (y + z + nu X),
    z' = alpha (Z - z), Z' = eta (z - Z)   (capitals for the paper's tildes).
    Gradient at i: h = grad f_i(x_i) - nu x_i - Y_i;  x_i -= gamma h, X_i -= Gamma h,
    Y_i += (delta + 1) h.  Exchange of i and j: m = (y_i + z_i) - (y_j + z_j);
    z_i -= m / 2, z_j += m / 2, Z_i -= beta m, Z_j += beta m.

    Use: smooth and strongly convex problems without a common clock; the rate does not depend on the
        graph, which only sets how often edges must exchange (`dadao_rates`).

    Args:
        smoothness: L of every f_i, > 0, traced.
        convexity: mu of every f_i, > 0, traced.
        chi1: 1 / lambda_2 of the Laplacian with the edges' rates, in seconds, > 0, traced:
            `dadao_rates(graph)["chi1"]`.
        gradients: "full" (of all examples of a node, the paper's analysis) or "minibatch", static.
    State: params [n, ...] and five more models per node; memory 6 n d. All nodes are at the end of
        the round.
    Needs: Events nets with gradients at rate 1 per node and second; row-local adversaries.
    Sent: up and down 32 d times the exchanges of a node, bits per node and round, in float32.
    Equals: itself whatever the packing of events into waves, to rounding.
    Deviations: none; the flow is the closed form of the authors' matrix exponential.
    Source: Nabli, Oyallon, "DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization",
        ICML 2023, arXiv 2208.00779; the authors' code was read, rates of convergence are recalled.
    Example:
        >>> ring, problem = networks.graphs.make("ring", 8), problems.quadratics(n=8)
        >>> rates = networks.dadao_rates(ring)
        >>> alg = algorithms.DADAO(problem.smoothness, problem.convexity, rates["chi1"])
        >>> run = jaxfl.simulate(
        ...     alg, problem.clients(), networks.poisson(ring, rounds=20, edge_rates=rates["rate"]),
        ...     jnp.zeros(5), jax.random.key(0), rounds=20,
        ... )
        >>> run.state.params.shape
        (8, 5)
    """

    smoothness: Scalar = hyper(low=1e-30)
    convexity: Scalar = hyper(low=1e-30)
    chi1: Scalar = hyper(low=1e-30)
    gradients: str = choice("full", "minibatch")
    needs: ClassVar[Needs] = Needs(Events, local=True)

    class State(NamedTuple):
        params: Stacked  # x  [n, ...]
        x_tilde: Stacked  # X  [n, ...]
        y: Stacked  # y  [n, ...]
        y_tilde: Stacked  # Y  [n, ...]
        z: Stacked  # z  [n, ...]  sums to 0 over the nodes
        z_tilde: Stacked  # Z  [n, ...]  sums to 0 over the nodes

    def init(self, params, clients, key):
        zero = clients.rows(tree.zeros_like(params))
        return self.State(clients.rows(params), *[zero] * 5)

    def round(self, state, clients, net, key):
        nu = self.convexity / 2
        slow = jnp.sqrt(nu / self.smoothness)
        eta, gamma, gamma_tilde = slow / 8, 1 / (4 * self.smoothness), slow / (4 * nu)
        delta, delta_tilde = slow / 4, 1.0
        beta, beta_tilde = 0.5, 2 * self.chi1 / slow
        flow = jnp.vectorize(
            lambda gap: _flow(gap, slow / 4, eta, 1 / (2 * slow), nu), signature="()->(k,l)"
        )

        def draw(client, number, key):
            key = jax.random.fold_in(key, number)  # by event, not by slot
            return key if self.gradients == "full" else client.draw(key)

        def gradient(client, x, xi, key):
            return client.grad(x, client.all(xi) if self.gradients == "full" else xi)

        def wave(s, event):
            i, ends, xi, order, flows = event
            at = _move(flows[: len(i)], comm.pick(s, i))
            loss, g = clients[i].each(gradient, at.params, xi, key=key)
            h = jax.tree.map(lambda g, x, y: g - nu * x - y, g, at.params, at.y_tilde)
            new = at._replace(
                params=_add(at.params, -gamma, h),
                x_tilde=_add(at.x_tilde, -gamma_tilde, h),
                y_tilde=_add(at.y_tilde, delta + delta_tilde, h),
            )
            s = comm.put(s, i, _pack(new))
            # both ends of the exchanges: row k meets row k + e modulo 2 e
            at = _move(flows[len(i) :], comm.pick(s, ends))
            own = jax.tree.map(jnp.add, at.y, at.z)
            got = net.deliver(own, ends, order, fork(key, "send"))
            m = jax.tree.map(lambda a, b: a - jnp.roll(b, len(ends) // 2, 0), own, got)
            new = at._replace(z=_add(at.z, -beta, m), z_tilde=_add(at.z_tilde, -beta_tilde, m))
            return comm.put(s, ends, _pack(new)), loss

        join = lambda *slots: jnp.concatenate(slots, 1)
        # all at once, outside the scan
        flows = flow(join(net.gap, net.gap_i, net.gap_j))
        xi = clients[net.grad.reshape(-1)].each(draw, net.number.reshape(-1), key=key)
        xi = jax.tree.map(lambda a: a.reshape(*net.grad.shape, *a.shape[1:]), xi)
        events = (net.grad, join(net.i, net.j), xi, join(net.order, net.order), flows)
        s, loss = jax.lax.scan(wave, _pack(state), events)
        state = _move(flow(net.rest), s)
        size = comm.bits(state.params) / net.n
        return state, net.info(Work(loss, 1.0), up=size, down=size)


def _add(x, scale, h):
    return jax.tree.map(lambda x, h: x + scale * h, x, h)


def _pack(state):
    """One array [n, 6, ...] per leaf: one gather and one scatter per wave, not six."""
    return jax.tree.map(lambda *six: jnp.stack(six, 1), *state)


# Of x, X, y, Y, z, Z, on which of the six each depends.
_DRIVERS = (0, 1), (0, 1), range(6), range(6), (4, 5), (4, 5)


def _move(flow, s):
    """flow [m, 6, 6] applied to packed models [m, 6, ...]; sums, since matmuls could be TF32."""

    def leaf(a):
        m = flow.reshape(*flow.shape, *(1,) * (a.ndim - 2)).astype(a.dtype)
        row = lambda k, drivers: sum(m[:, k, j] * a[:, j] for j in drivers)
        return DADAO.State(*map(row, range(6), _DRIVERS))

    return jax.tree.transpose(jax.tree.structure(s), None, jax.tree.map(leaf, s))


def _flow(gap, alpha, eta, theta, nu):
    """exp(M gap) [6, 6]: where the six unit vectors are after the gap.

    (x, X) and (z, Z) relax and drive (y, Y), a damped oscillator: its frequency omega is real,
    since alpha theta = 1/8 and alpha^2 / 4 <= 1/128.
    """
    x, x_tilde, y, y_tilde, z, z_tilde = jnp.eye(6, dtype=gap.dtype)
    fast = alpha + eta
    e_x, e_z = jnp.exp(-2 * eta * gap), jnp.exp(-fast * gap)
    mean, half = (x + x_tilde) / 2, (x - x_tilde) / 2
    still, rest = (eta * z + alpha * z_tilde) / fast, alpha * (z - z_tilde) / fast
    # the force z + nu X on y is a constant and two decaying parts; each has a particular solution
    parts = ((0.0, still + nu * mean, 1.0), (2 * eta, -nu * half, e_x), (fast, rest, e_z))
    y0, y1, yt0, yt1 = y, 0.0, y_tilde, 0.0
    for rate, force, decay in parts:
        scale = theta / (rate * (alpha - rate) - alpha * theta)
        a, b = scale * alpha * force, scale * (alpha - rate) * force
        y0, y1, yt0, yt1 = y0 - a, y1 + decay * a, yt0 - b, yt1 + decay * b
    omega = jnp.sqrt(alpha * theta - alpha**2 / 4)
    damp = jnp.exp(-alpha / 2 * gap)
    cos, sin = damp * jnp.cos(omega * gap), damp * jnp.sin(omega * gap) / omega
    return jnp.stack(
        [
            mean + e_x * half,
            mean - e_x * half,
            y1 + cos * y0 + sin * alpha * (yt0 - y0 / 2),
            yt1 + cos * yt0 + sin * (alpha / 2 * yt0 - theta * y0),
            still + e_z * rest,
            still + e_z * (z_tilde - still),
        ]
    )
