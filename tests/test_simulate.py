"""Running: schedules, grids, seeds, chunks, evaluation, checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harness import CLIENTS, KEY, X0, D, N

from jaxfl.algorithms import ALGORITHMS, DSGD, Choco, ExactDiffusion, FedAvg, Scaffold
from jaxfl.components.compressors import TopK
from jaxfl.components.solvers import Momentum, Optax
from jaxfl.engine import comm
from jaxfl.engine.clients import Clients
from jaxfl.engine.contract import Algorithm, matrix
from jaxfl.engine.fields import strong
from jaxfl.engine.grid import grid, scaled
from jaxfl.engine.simulate import _chunk, _init, simulate
from jaxfl.networks import Uniform, from_matrix, topology
from jaxfl.runs.checkpoint import load, save, to_numpy
from jaxfl.runs.run import run

COHORT = Uniform(N, 3)
same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)


def _params(state):
    return {"x": state.params}


def test_every_algorithm_keeps_the_protocol():
    for name, cls in ALGORITHMS.items():
        if isinstance(cls, type):
            assert name == cls.__name__.lower()
            assert cls.__bases__ == (object,), "composition, never inheritance"
            assert callable(cls.init) and callable(cls.round)
    assert isinstance(FedAvg(lr=0.1), Algorithm)


def test_chunks_callbacks_and_early_stop():
    """`run` equals `simulate` bit for bit whatever the chunks; a callback can stop it."""
    alg, every = Scaffold(lr=0.05, steps=2), 2
    options = dict(rounds=12, every=every, evaluate=_params)
    whole = simulate(alg, CLIENTS, COHORT, X0, KEY, **options)
    seen = []
    parts = run(
        alg,
        CLIENTS,
        COHORT,
        X0,
        KEY,
        **options,
        chunk=4,
        callbacks=[lambda t, part: seen.append((t, part.history.loss.shape))],
        progress=True,
    )
    same(whole, parts)
    assert seen == [(4, (4,)), (8, (4,)), (12, (4,))]
    np.testing.assert_array_equal(X0, np.linspace(-1, 1, D))  # the caller's params live on
    stopped = run(
        alg, CLIENTS, COHORT, X0, KEY, **options, chunk=4, callbacks=[lambda t, p: t == 8]
    )
    assert stopped.history.loss.shape == (8,)
    same(stopped.history.loss, whole.history.loss[:8])
    resumed = run(
        alg, CLIENTS, COHORT, X0, KEY, **{**options, "rounds": 4}, start=8, state=stopped.state
    )
    same(resumed.state, whole.state)
    with pytest.raises(ValueError, match="chunk must be a multiple"):
        run(alg, CLIENTS, COHORT, X0, KEY, **options, chunk=3)


def test_schedule_is_the_hyperparameter_of_the_round():
    """A decaying learning rate equals one-round runs with that rate."""
    decay = optax.exponential_decay(1.0, 1, 0.8)
    alg = FedAvg(lr=0.1, steps=2)
    whole = simulate(alg, CLIENTS, COHORT, X0, KEY, rounds=3, schedule=scaled(lr=decay))
    state = None
    for t in range(3):
        one = FedAvg(lr=0.1 * 0.8**t, steps=2)
        state = simulate(one, CLIENTS, COHORT, X0, KEY, rounds=1, start=t, state=state).state
    np.testing.assert_allclose(whole.state.params, state.params, rtol=1e-7)


def test_seeds_and_hyperparameters_in_one_program():
    """vmap over keys and a grid equals single runs."""
    algs = grid(FedAvg, lr=[0.05, 0.1], server_lr=[1.0, 0.5], steps=2)
    assert algs.lr.tolist() == [0.05, 0.05, 0.1, 0.1] and algs.server_lr.shape == (4,)
    assert algs.solver.decay.shape == (4,)
    keys = jax.random.split(KEY, 2)
    go = lambda alg, key: simulate(alg, CLIENTS, COHORT, X0, key, rounds=4).state.params
    many = jax.vmap(lambda key: jax.vmap(lambda alg: go(alg, key))(algs))(keys)
    assert many.shape == (2, 4, D)
    np.testing.assert_allclose(many[1, 2], go(FedAvg(lr=0.1, steps=2), keys[1]), rtol=1e-12)
    nested = grid(Choco(lr=0.1, compress=TopK(0.3)), gamma=[0.1, 0.2])
    assert nested.compress.fraction.shape == (2,)


def test_numbers_of_every_kind_are_one_program():
    """lr=1, 1.0, a NumPy or a JAX number, and a graph with other weights: no recompilation."""
    ring = np.asarray(np.roll(np.eye(N), 1, 0) + np.roll(np.eye(N), -1, 0)) / 4 + np.eye(N) / 2
    other = 0.8 * ring + 0.2 * np.eye(N)
    alg = lambda lr: DSGD(lr=lr)
    simulate(alg(1), CLIENTS, from_matrix(ring), X0, KEY, rounds=2)
    before = _chunk._cache_size()
    for lr in (1.0, np.float32(1), jnp.array(1.0), jnp.array(1)):
        simulate(alg(lr), CLIENTS, from_matrix(ring), X0, KEY, rounds=2)
    simulate(alg(0.5), CLIENTS, from_matrix(other), X0, KEY, rounds=2)
    assert _chunk._cache_size() == before


def test_local_solvers():
    """Momentum persists per node in D-SGD; any optax optimiser trains."""
    for solver in (Momentum(beta=0.9), Optax(optax.adam(1.0))):
        out = simulate(
            DSGD(lr=0.01, solver=solver), CLIENTS, topology("ring", N), X0, KEY, rounds=30
        )
        assert out.history.loss[-10:].mean() < out.history.loss[:3].mean()
        moments = [a for a in jax.tree.leaves(out.state.memory) if a.ndim == 2]
        assert moments and all(np.abs(m).max() > 0 for m in moments)


def test_divergence_is_data():
    """A diverging run stays NaN and does not disturb its neighbours."""
    go = lambda lr: simulate(FedAvg(lr=lr, steps=10), CLIENTS, COHORT, X0, KEY, rounds=40)
    both = jax.vmap(go)(jnp.array([0.05, 1e6]))
    np.testing.assert_allclose(both.state.params[0], go(0.05).state.params, rtol=1e-12)
    assert not np.isfinite(both.state.params[1]).any()


def test_precision_policies():
    """bfloat16 and TF32 local compute keep the parameters' dtype and come near float32."""
    x = X0.astype(jnp.float32)
    ends = [
        simulate(
            FedAvg(lr=0.05, steps=2), CLIENTS.replace(precision=p), COHORT, x, KEY, rounds=5
        ).state.params
        for p in ("float32", "tf32", "bfloat16")
    ]
    assert all(e.dtype == jnp.float32 for e in ends)
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-5)
    np.testing.assert_allclose(ends[2], ends[0], atol=0.1)
    assert np.abs(ends[2] - ends[0]).max() > 0


def test_save_and_load(tmp_path):
    """A state, per-client models and plain NumPy survive a round trip bit for bit."""
    out = simulate(DSGD(lr=0.05), CLIENTS, topology("ring", N), {"a": X0}, KEY, rounds=2)
    save(tmp_path / "state", out.state)
    same(load(tmp_path / "state", out.state), out.state)
    plain = load(tmp_path / "state")
    np.testing.assert_array_equal(plain["params"]["a"], out.state.params["a"])
    assert isinstance(to_numpy(out.state).params["a"], np.ndarray)
    with pytest.raises(ValueError, match="exists already"):
        save(tmp_path / "state", out.state)
    with pytest.raises(ValueError, match="checkpoint folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "state", {"other": X0})
    (tmp_path / "foreign").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "foreign")


def test_totals_are_float64_sums():
    """Bits beyond int32 and float32 add up exactly."""
    big = {"x": jnp.zeros(2**14)}
    loss = lambda params, examples, key: jnp.zeros(examples["a"].shape[0]) * params["x"][0]
    clients = Clients.make({"a": np.zeros(2)}, (np.arange(2), np.arange(2), np.ones(2, int)), loss)
    history = simulate(FedAvg(lr=0.0, steps=1), clients, Uniform(2, 2), big, KEY, rounds=3).history
    totals = history.totals()
    assert totals["megabytes"].dtype == np.float64
    np.testing.assert_array_equal(totals["megabytes"], np.arange(1, 4) * 2 * 2 * 64 * 2**14 / 8e6)
    np.testing.assert_array_equal(totals["grads"], [2, 4, 6])
    np.testing.assert_array_equal(totals["rounds"], [1, 2, 3])


class Watched:
    """A loss that counts how often it is traced."""

    def __init__(self):
        self.traced = 0

    def __call__(self, params, examples, key):
        self.traced += 1
        return jnp.square(params["x"][None] - examples["a"]).sum(1)


def test_a_warm_call_traces_nothing():
    """What passed is remembered; another loss, model, data, dtype or batch is checked again."""
    loss, a = Watched(), np.arange(12.0).reshape(6, 2)
    parts = np.arange(6), np.array([0, 3]), np.array([3, 3])
    world, params = Uniform(2, 1), {"x": jnp.zeros(2)}

    def traces(go=simulate, loss=loss, data=a, params=params, lr=0.1, **options):
        clients = Clients.make({"a": data}, parts, loss, **options)
        before = loss.traced
        go(FedAvg(lr=lr, steps=1), clients, world, params, KEY, rounds=2)
        return loss.traced - before

    assert traces() > 0
    assert traces() == 0 and traces(lr=0.2) == 0 and traces(data=a + 1) == 0
    traces(run)
    assert traces(run) == 0
    assert traces(loss=Watched()) > 0
    assert traces(data=a.astype(np.float32)) > 0
    assert traces(params={"x": jnp.zeros(2, jnp.float32)}) > 0
    assert traces(batch=3) > 0
    with jax.enable_x64(False):
        assert traces(params={"x": np.zeros(2, np.float32)}, data=a.astype(np.float32)) > 0
    for change in (dict(params={"x": jnp.zeros(3)}), dict(params={"y": X0})):
        for _ in range(2):  # what is refused is not remembered
            with pytest.raises(ValueError, match="loss does not accept"):
                traces(**change)
    assert traces() == 0


def test_the_spectrum_is_looked_at_once(monkeypatch):
    """Exact diffusion asks for eigenvalues: of every matrix, but not in every call."""
    seen = []
    monkeypatch.setattr(
        np.linalg, "eigvalsh", lambda w, f=np.linalg.eigvalsh: seen.append(1) or f(w)
    )
    go = lambda w: simulate(ExactDiffusion(lr=0.1), CLIENTS, w, X0, KEY, rounds=1)
    ring = (
        np.asarray(np.roll(np.eye(N), 1, 0) + np.roll(np.eye(N), -1, 0)) * 0.24 + np.eye(N) * 0.52
    )
    for w, times in ((ring, 1), (ring, 1), (0.9 * ring + 0.1 * np.eye(N), 2)):
        go(from_matrix(w))
        assert len(seen) == times


@pytest.mark.parametrize(
    "network", [topology("ring", N), topology("star", N), topology("complete", N)]
)
def test_the_matrix_on_the_host(network):
    np.testing.assert_allclose(matrix(network), comm.to_dense(network.w), rtol=1e-15)


def test_a_plain_call_donates_only_what_it_made():
    """The state that `init` made is overwritten in place; what the caller holds lives on."""
    alg, x = Scaffold(lr=0.05, steps=2), {"x": jnp.array(X0), "y": jnp.zeros(2)}
    loss = lambda p, e, key: CLIENTS.loss(p["x"], e, key) + p["y"].sum()
    clients = CLIENTS.replace(loss=loss)
    first = simulate(alg, clients, COHORT, x, KEY, rounds=2)
    start = jax.device_get(first.state)
    for go in (simulate, run):
        more = go(alg, clients, COHORT, x, KEY, rounds=2, start=2, state=first.state)
        same(start, first.state)
        same(go(alg, clients, COHORT, x, KEY, rounds=4).state, more.state)
    assert not any(a.is_deleted() for a in jax.tree.leaves((x, first.state, clients)))
    made = _init(strong(alg, x), clients, x, KEY)
    own = [a.unsafe_buffer_pointer() for a in jax.tree.leaves(made)]
    assert len({*own, *(a.unsafe_buffer_pointer() for a in jax.tree.leaves(x))}) == len(own) + 2
    assert _chunk.lower(
        strong(alg, x), clients, COHORT, KEY, jnp.int32(0), made, None, None, rounds=2, every=2
    ).as_text().count("tf.aliasing_output") == len(own)


def test_states_that_are_given_under_transformations():
    """Nothing is donated there: jit, vmap and grad give what plain calls give."""
    alg = Scaffold(lr=0.05, steps=2)
    state = simulate(alg, CLIENTS, COHORT, X0, KEY, rounds=1).state

    def go(lr, state=None):
        alg_ = alg.replace(lr=lr)
        return simulate(alg_, CLIENTS, COHORT, X0, KEY, rounds=1, state=state).state.params

    lrs = jnp.array([0.05, 0.1])
    np.testing.assert_allclose(jax.jit(go)(0.1, state), go(0.1, state), rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(go, (0, None))(lrs, state)[1], go(0.1, state), rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(go)(lrs)[1], go(0.1), rtol=1e-12)
    assert jax.grad(lambda lr: go(lr).sum())(0.1) != 0
    assert not any(a.is_deleted() for a in jax.tree.leaves(state))
