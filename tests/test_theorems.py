"""What theory says: where methods end up, which of them coincide, and how fast they go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, QUICK, RING, N
from harness import CLIENTS, KEY, X0, D, flat, full_record, play, record_world
from oracles.problem import Quadratic

from jaxfl.algorithms import (
    DSGD,
    SGP,
    Choco,
    Ditto,
    FedAvg,
    FedCM,
    FedDyn,
    FedExP,
    FedOpt,
    FedProx,
    FedSAM,
    GradientTracking,
    Local,
    MoFedSAM,
    MoNNA,
    Scaffold,
)
from jaxfl.components import QSGD, Identity, RandK, TopK
from jaxfl.engine import comm
from jaxfl.engine.clients import Clients
from jaxfl.engine.simulate import simulate
from jaxfl.networks import Cohort, Everyone, Uniform, from_matrix, topology

Q = Quadratic.q()
# problem Q: f_i(x) = sum_j a_ij (x_j - b_ij)^2 / 2, one example per client, so gradients are full
QA = np.array([[1 + ((3 * i + 5 * j) % 7) / 2 for j in range(5)] for i in range(8)])
QB = np.array([[2 * np.sin(1.7 * i + 0.9 * j + 0.3) for j in range(5)] for i in range(8)])
BEST = (QA * QB).sum(0) / QA.sum(0)


def quadratic(params, examples, key):
    """Problem Q's loss."""
    return 0.5 * jnp.sum(examples["a"] * jnp.square(flat(params)[None] - examples["b"]), -1)


ONE_EACH = (np.arange(8), np.arange(8), np.ones(8, int))
QUADRATICS = Clients.make({"a": QA, "b": QB}, ONE_EACH, quadratic, batch=1)
ZERO = jnp.zeros(5)


def solve(alg, network, rounds=1000, x=ZERO):
    """The mean model after many rounds on problem Q."""
    run = simulate(alg, QUADRATICS, network, x, KEY, rounds=rounds)
    params = np.asarray(run.state.params)
    return params if params.ndim == 1 else params.mean(0), run


def _quiet(network):
    """The fixed, lossless network inside, for tests of the limit."""
    while hasattr(network, "network"):
        network = network.network
    return Everyone(N) if network.kind.__name__ == "Cohort" else network


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.quick] * (c in QUICK)) for c in CASES], ids=str
)
def test_where_it_ends(case):
    """Exact methods reach x* to 1e-10; biased ones their known fixed point, and not x*."""
    alg = case.algorithm.replace(**case.tuned)
    network, rounds = case.long or (_quiet(case.network), 2000)
    end, run = solve(alg, network, rounds=rounds)
    distance = np.abs(np.asarray(run.state.params) - BEST).max()
    if case.exact:
        assert distance < 1e-10
        if run.state.params.ndim == 2:
            assert np.ptp(run.state.params, axis=0).max() < 1e-10
        return
    if case.fixed is not None:
        expected = case.fixed(Q)
    elif case.limit is not None:
        expected = case.limit(Q, alg, network)
    else:
        steps = getattr(alg, "epochs", 0) or getattr(alg, "steps", 1)
        record = full_record(record_world(network, rounds), rounds, steps)
        start = np.zeros(5) if network.kind is Cohort else np.zeros((N, 5))
        expected = case.expected(Q, start, record, None, alg)[-1]["params"]
    np.testing.assert_allclose(run.state.params, expected, atol=1e-9)
    assert distance > 1e-3, "a biased method that shows no bias leaks information"
    assert np.abs(expected).max() > 1e-2, "a method that does nothing would end there"


@pytest.mark.quick
def test_numbers_of_the_specification():
    """Problem Q: optimum, and ten-round iterates from zero, as published there."""
    np.testing.assert_allclose(
        BEST, [-0.071855, 0.189025, 0.127384, -0.032322, -0.123140], atol=5e-7
    )
    ten = lambda alg: solve(alg, Everyone(N), rounds=10)[0]
    np.testing.assert_allclose(
        ten(FedAvg(lr=0.1, steps=5)),
        [-0.037594, 0.159617, 0.165498, 0.011811, -0.088552],
        atol=5e-7,
    )
    np.testing.assert_allclose(
        ten(Scaffold(lr=0.1, steps=5)),
        [-0.071763, 0.189080, 0.127539, -0.032271, -0.123058],
        atol=5e-7,
    )
    for alg, ends in (
        (FedDyn(lr=0.1, mu=0.1, steps=5), [-0.045909, 0.167791, 0.158397, -0.000201, -0.096376]),
        (FedCM(lr=0.1, alpha=0.2, steps=5), [-0.065498, 0.174153, 0.133019, -0.023349, -0.108523]),
    ):
        np.testing.assert_allclose(ten(alg), ends, atol=5e-7)
    end, _ = solve(FedProx(lr=0.1, mu=0.5, steps=5), Everyone(N))
    assert abs(np.abs(end - BEST).max() - 0.04329) < 1e-5
    end, _ = solve(FedSAM(lr=0.1, rho=0.1, steps=5), Everyone(N))
    assert abs(np.abs(end - Q.x_fa(0.1, 5)).max() - 0.00544) < 1e-5


def test_fedexp_extrapolates_by_what_its_paper_says():
    """Eight one-hot changes in five coordinates: rate 2.285714; equal changes: rate 1."""

    def towards(params, examples, key):  # the gradient is minus the example
        return -examples["d"] @ params

    def moved(changes, eps):
        d = np.asarray(changes, float)
        clients = Clients.make({"d": d}, ONE_EACH, towards, batch=1)
        alg = FedExP(lr=1.0, eps=eps, steps=1)
        run = simulate(alg, clients, Everyone(N), ZERO, KEY, rounds=1)
        return np.linalg.norm(run.state.z) / np.linalg.norm(d.mean(0))

    assert abs(moved(np.eye(5)[np.arange(8) % 5], 1e-30) - 2.285714) < 1e-6
    assert abs(moved(np.ones((8, 5)), 1e-30) - 1) < 1e-12


def test_scaffold_is_exact_under_sampling():
    """Two of eight clients a round: SCAFFOLD reaches x*, c = mean c_i; FedAvg never settles."""
    end, run = solve(Scaffold(lr=0.1, server_lr=0.5, steps=5), Uniform(N, 2), rounds=4000)
    np.testing.assert_allclose(end, BEST, atol=1e-10)
    np.testing.assert_allclose(run.state.c, run.state.c_i.mean(0), atol=1e-14)
    np.testing.assert_allclose(run.state.c_i, QA * (BEST - QB), atol=1e-8)
    end, _ = solve(FedAvg(lr=0.1, steps=5), Uniform(N, 2), rounds=4000)
    assert np.abs(end - BEST).max() > 0.05


# --- the lattice of degenerate cases: each a theorem, each to 1e-12 ---------------------------

COMPLETE = from_matrix(np.full((N, N), 1 / N))


@functools.cache
def _world(name):
    if name == "everyone":
        return record_world(Everyone(N))
    if name == "cohort":
        return record_world(Uniform(N, 3))
    return record_world(
        {
            "complete": COMPLETE,
            "ring": RING,
            "exponential": topology("exponential", N),
            "random": topology("erdos_renyi", N, p=0.4, seed=1),
        }[name]
    )


def _mean(run):
    params = np.asarray(run.state.params)
    return params if params.ndim == 1 else params.mean(0)


LATTICE = {
    "FedProx(mu=0) = FedAvg": (
        (FedProx(lr=0.05, mu=0.0, steps=3), "cohort"),
        (FedAvg(lr=0.05, steps=3), "cohort"),
    ),
    "FedSAM(rho=0) = FedAvg": (
        (FedSAM(lr=0.05, rho=0.0, steps=3), "cohort"),
        (FedAvg(lr=0.05, steps=3), "cohort"),
    ),
    "FedCM(alpha=1) = FedAvg": (
        (FedCM(lr=0.05, alpha=1.0, steps=3), "cohort"),
        (FedAvg(lr=0.05, steps=3), "cohort"),
    ),
    "MoFedSAM(rho=0) = FedCM": (
        (MoFedSAM(lr=0.05, rho=0.0, steps=3), "cohort"),
        (FedCM(lr=0.05, steps=3), "cohort"),
    ),
    "FedOpt(tau huge) = FedAvg": (
        (FedOpt(lr=0.05, beta1=0.0, tau=1e16, server_lr=2e16, steps=3, kind="adagrad"), "cohort"),
        (FedAvg(lr=0.05, steps=3), "cohort"),
    ),
    "Ditto's global model = FedAvg": (
        (Ditto(lr=0.05, steps=3), "cohort"),
        (FedAvg(lr=0.05, steps=3), "cohort"),
    ),
    "D-SGD(atc) on the complete graph = FedAvg": (
        (DSGD(lr=0.05, steps=3), "complete"),
        (FedAvg(lr=0.05, steps=3), "everyone"),
    ),
    "SGP on a doubly stochastic matrix = D-SGD(atc)": (
        (SGP(lr=0.05), "exponential"),
        (DSGD(lr=0.05), "exponential"),
    ),
    "CHOCO-icml(identity, gamma=1) = D-SGD(atc)": (
        (Choco(lr=0.05, gamma=1.0, compress=Identity()), "random"),
        (DSGD(lr=0.05), "random"),
    ),
    "CHOCO-code(identity, gamma=1) = D-SGD(cta)": (
        (Choco(lr=0.05, gamma=1.0, compress=Identity(), order="code"), "random"),
        (DSGD(lr=0.05, order="cta"), "random"),
    ),
    "top-k of everything = identity": (
        (Choco(lr=0.05, compress=TopK(1.0)), "random"),
        (Choco(lr=0.05, compress=Identity()), "random"),
    ),
    "random-k of everything = identity": (
        (Choco(lr=0.05, compress=RandK(1.0)), "random"),
        (Choco(lr=0.05, compress=Identity()), "random"),
    ),
    "MoNNA(f=0, beta=0) on the complete graph = D-SGD": (
        (MoNNA(lr=0.05, f=0, beta=0.0), "complete"),
        (DSGD(lr=0.05), "complete"),
    ),
}


@pytest.mark.parametrize("name", LATTICE)
def test_degenerate_cases(name):
    """One method with a parameter switched off is another one."""
    (one, world), (other, twin) = LATTICE[name]
    a, b = (
        play(one, _world(world), rounds=10),
        play(other, _world(twin), rounds=10),
    )
    np.testing.assert_allclose(_mean(a), _mean(b), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.history.loss, b.history.loss, rtol=1e-12, atol=1e-12)


def test_personal_models_that_nothing_pulls_train_alone():
    """Ditto(mu=0)'s personal models are Local's, under the same cohorts and key."""
    ditto = play(Ditto(lr=0.05, mu=0.0, steps=3), _world("cohort"), rounds=10).state.state
    alone = play(Local(lr=0.05, steps=3), _world("cohort"), rounds=10).state.state
    np.testing.assert_allclose(alone.params, ditto.own, rtol=1e-12, atol=1e-12)
    assert alone.personal.rows is alone.params


def test_one_local_step_of_everyone_is_gradient_descent():
    """FedAvg with full gradients and one step, and D-SGD and tracking on the complete graph."""
    x = np.zeros(5)
    for _ in range(10):
        x = x - 0.1 * (QA * (x - QB)).mean(0)
    for alg, network in (
        (FedAvg(lr=0.1, steps=1), Everyone(N)),
        (DSGD(lr=0.1), COMPLETE),
        (GradientTracking(lr=0.1), COMPLETE),
    ):
        np.testing.assert_allclose(solve(alg, network, rounds=10)[0], x, atol=1e-13)


def test_scaffold_starts_as_fedavg():
    """With all control variates zero, the first round is FedAvg's."""
    a = play(Scaffold(lr=0.05, steps=3), _world("cohort"), rounds=1)
    b = play(FedAvg(lr=0.05, steps=3), _world("cohort"), rounds=1)
    np.testing.assert_allclose(a.state.params, b.state.params, atol=1e-14)


def test_exact_diffusion_two_step_form():
    """x+ = W (2 x - x_before - lr (g - g_before)) when lazy = 0."""
    w = np.asarray(comm.to_dense(topology("ring", N, weights="lazy").w))
    grad = lambda x: QA * (x - QB)
    from jaxfl.algorithms import ExactDiffusion

    run = simulate(
        ExactDiffusion(lr=0.1, lazy=0.0),
        QUADRATICS,
        topology("ring", N, weights="lazy"),
        ZERO,
        KEY,
        rounds=10,
    )
    before = np.zeros((N, 5))
    now = w @ (before - 0.1 * grad(before))
    for _ in range(9):
        before, now = now, w @ (2 * now - before - 0.1 * (grad(now) - grad(before)))
    np.testing.assert_allclose(run.state.params, now, atol=1e-12)


# --- invariants and rates ---------------------------------------------------------------------


def test_trackers_keep_the_mean_gradient():
    """mean(y) = mean(g) with stochastic gradients, on a time-varying graph."""
    for order in ("atc", "diging"):
        run = play(
            GradientTracking(lr=0.03, order=order),
            record_world(topology("one_peer_exponential", N)),
        )
        s = run.state.state
        np.testing.assert_allclose(s.y.mean(0), s.g.mean(0), atol=1e-12)


def test_choco_keeps_the_mean_and_contracts():
    """Gossip alone (lr = 0): the mean is kept by every compressor, consensus is reached."""
    rng = np.random.default_rng(0)
    alg = Choco(lr=0.0, gamma=0.2, compress=TopK(0.4))
    x = jnp.asarray(rng.normal(size=(N, D)))
    state = alg.State(x, jnp.zeros_like(x))
    for compress in (TopK(0.4), RandK(0.4), QSGD(4.0, contractive=1.0)):
        run = simulate(
            alg.replace(compress=compress), CLIENTS, RING, X0, KEY, rounds=600, state=state
        )
        end = np.asarray(run.state.params)
        np.testing.assert_allclose(end.mean(0), np.asarray(x).mean(0), atol=1e-12)
        assert np.abs(end - end.mean(0)).max() < 1e-5


def test_consensus_contracts_at_the_second_eigenvalue():
    """D-SGD with lr = 0: consensus error falls by lambda^2 per round, lambda in closed form."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(N, D)))
    lam = 1 / 3 + 2 / 3 * np.cos(2 * np.pi / N)
    errors = []
    for rounds in (20, 40):
        run = simulate(DSGD(lr=0.0), CLIENTS, RING, X0, KEY, rounds=rounds, state=DSGD.State(x, ()))
        end = np.asarray(run.state.params)
        errors.append(np.square(end - end.mean(0)).sum())
    slope = (np.log(errors[1]) - np.log(errors[0])) / 20
    np.testing.assert_allclose(slope, 2 * np.log(lam), rtol=1e-3)


def test_bias_of_dsgd_is_linear_in_the_learning_rate():
    """log bias against log lr has slope one, for both orders; they differ."""
    lrs = jnp.array([0.02, 0.01, 0.005, 0.0025])
    for order in ("atc", "cta"):
        ends = jax.vmap(
            lambda lr, order=order: (
                simulate(
                    DSGD(lr=lr, order=order), QUADRATICS, RING, ZERO, KEY, rounds=4000
                ).state.params
            )
        )(lrs)
        bias = np.sqrt(np.square(np.asarray(ends) - BEST).sum((1, 2)))
        slope = np.polyfit(np.log(lrs), np.log(bias), 1)[0]
        assert abs(slope - 1) < 0.1, (order, slope)


def test_variance_falls_with_the_number_of_clients():
    """Noisy gradients: the stationary variance of the mean model is proportional to 1 / n."""
    sizes, spread = (2, 8, 32), []

    for n in sizes:
        clients = Clients.make(
            {"b": np.zeros((n, 1))}, (np.arange(n), np.arange(n), np.ones(n, int)), _noisy, batch=1
        )
        run = simulate(
            FedAvg(lr=0.1, steps=1),
            clients,
            Everyone(n),
            jnp.zeros(1),
            KEY,
            rounds=4000,
            every=1,
            evaluate=_params,
        )
        spread.append(np.var(np.asarray(run.evaluations)[200:]))
    # one step: var = lr / (2 - lr) sigma^2 / n; autocorrelated draws: about 200 effective samples
    expected = np.array([0.1 / 1.9 / n for n in sizes])
    np.testing.assert_allclose(np.array(spread) / expected, 1, atol=5 * np.sqrt(2 / 200))


def _noisy(params, examples, key):
    noise = jax.random.normal(key, (1,))
    return 0.5 * jnp.square(params[None] - examples["b"])[:, 0] + noise * params[0]


def _params(state):
    return state.params


def test_hypergradient_is_the_finite_difference():
    """The whole run is differentiable in its hyperparameters."""
    loss = lambda lr: simulate(
        FedAvg(lr=lr, steps=2), CLIENTS, Uniform(N, 3), X0, KEY, rounds=5
    ).history.loss[-1]
    slope = jax.grad(loss)(0.05)
    eps = 1e-5
    np.testing.assert_allclose(slope, (loss(0.05 + eps) - loss(0.05 - eps)) / (2 * eps), rtol=1e-6)
