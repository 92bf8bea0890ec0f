"""Local problems: who draws what, losses and gradients, blocks, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxfl
from jaxfl.algorithms import DSGD, ExactDiffusion, FedAvg, GradientTracking
from jaxfl.data import augment as augmentation
from jaxfl.engine import comm
from jaxfl.engine.client import LossShapeError, Sample
from jaxfl.engine.clients import Clients
from jaxfl.networks import ALIE, Cohort, Links, Noisy, SignFlip, Uniform, topology
from jaxfl.networks.adversaries import Send

COUNTS = np.array([3, 1, 7, 5, 9, 2])
N, SIZE, BATCH = len(COUNTS), 30, 4
RNG = np.random.default_rng(0)
ORDER = RNG.permutation(SIZE)[: COUNTS.sum()]  # three examples belong to nobody
PARTITION = (ORDER, np.cumsum(COUNTS) - COUNTS, COUNTS)
OWN = [ORDER[s : s + c] for s, c in zip(PARTITION[1], COUNTS)]
X, Y = RNG.normal(size=(SIZE, 3)), RNG.normal(size=SIZE)
DATA = {"x": X, "y": Y, "row": np.arange(SIZE)}
KEY = jax.random.key(3)


def run(f, *args):
    """One program, results on the host."""
    return jax.device_get(jax.jit(f)(*args))


def squares(params, examples, key):
    return jnp.square(examples["x"] @ params["w"] + params["b"] - examples["y"])


def tasks(params, examples, key):
    return squares(params, examples, key)[:, None] * jnp.array([[1.0, 3.0]])


def make(loss=squares, data=DATA, partition=PARTITION, **options):
    return Clients.make(data, partition, loss, batch=BATCH, **options)


# Samples ------------------------------------------------------------------------------------------

STEPS, EPOCHS = 1500, 4


@pytest.fixture(scope="module")
def drawn():
    """Every kind of sample of every client, and the rows of data that they name."""

    def one(client, key):
        rows = lambda xi: client.get(xi)["row"]
        xi, epochs, all = client.draws(key, STEPS), client.epochs(key, EPOCHS), client.all(key)
        out = {"draws": xi, "epochs": epochs}
        out = {name: (xi.index, xi.weight, jax.vmap(rows)(xi)) for name, xi in out.items()}
        out["all"] = all.index, all.weight, rows(all)
        out["samples"] = [client.samples(key, 2, epochs)[0].index for epochs in (0, 1)]
        return out | {"keys": jax.random.key_data(xi.key)}

    clients = make()
    order = np.array([4, 2, 5, 0, 1, 3])
    program = lambda clients, key, idx: (
        clients.each(one, key=key),
        clients[idx].each(one, key=key),
    )
    return order, *run(program, clients, KEY, order)


def test_draws_are_uniform_over_the_own_examples(drawn):
    index, weight, rows = drawn[1]["draws"]
    assert index.shape == (N, STEPS, BATCH) and (weight == 1).all()
    total = STEPS * BATCH
    for i, own in enumerate(OWN):
        counts = np.bincount(rows[i].ravel(), minlength=SIZE)
        assert counts[own].sum() == total  # never another client's
        p = 1 / len(own)
        assert np.abs(counts[own] - total * p).max() <= 5 * np.sqrt(total * p * (1 - p))
        np.testing.assert_array_equal(own[index[i]], rows[i])
    keys = drawn[1]["keys"].reshape(N * STEPS, -1)
    assert len(np.unique(keys, axis=0)) == N * STEPS


def test_an_epoch_has_each_example_once(drawn):
    index, weight, rows = drawn[1]["epochs"]
    steps = -(-COUNTS.max() // BATCH)
    assert index.shape == (N, EPOCHS * steps, BATCH)
    orders = []
    for i, own in enumerate(OWN):
        for w, r in zip(np.split(weight[i], EPOCHS), np.split(rows[i], EPOCHS)):
            assert set(np.unique(w)) <= {0, 1}
            np.testing.assert_array_equal(np.sort(r[w == 1]), np.sort(own))
            np.testing.assert_array_equal(w.ravel(), np.arange(w.size) < len(own))  # padding last
            orders.append((i, tuple(r[w == 1])))
    assert len({o for i, o in orders if i == 4}) == EPOCHS  # shuffled anew


def test_all_is_everything_once(drawn):
    index, weight, rows = drawn[1]["all"]
    for i, own in enumerate(OWN):
        np.testing.assert_array_equal(rows[i][weight[i] == 1], own)
        assert weight[i].sum() == len(own) and weight.shape[1] == COUNTS.max()


def test_samples_are_minibatches_or_epochs(drawn):
    minibatches, epoch = drawn[1]["samples"]
    assert minibatches.shape == (N, 2, BATCH) and epoch.shape == (N, 3, BATCH)
    assert (np.sort(epoch[4].ravel()) == np.arange(12)).all()


def full(loss=squares, **options):
    return Clients.make(DATA, PARTITION, loss, batch="all", **options)


def test_full_batches_are_all_examples_whatever_draws_them():
    def one(client, key):
        whole = client.all(key)
        stacks = [client.draws(key, 3), client.epochs(key, 3), *client.samples(key, 3, 0)]
        stacks += [*client.samples(key, 7, 3)]
        draw = client.draw(key)
        bare = lambda xi: xi._replace(key=jax.random.key_data(xi.key))
        return bare(whole), [*map(bare, stacks)], bare(draw), client.grad(PARAMS, draw)

    clients = full()
    whole, stacks, draw, (loss, g) = run(lambda c: c.each(one, key=KEY), clients)
    assert len(stacks) == 4
    np.testing.assert_array_equal(draw.index, whole.index)
    np.testing.assert_array_equal(draw.weight, whole.weight)
    for xi in stacks:
        assert (
            xi.index.shape == (N, 3, COUNTS.max())
            and len(np.unique(xi.key.reshape(-1, 2), axis=0)) == 3 * N
        )
        for k in range(3):
            np.testing.assert_array_equal(xi.index[:, k], whole.index)
            np.testing.assert_array_equal(xi.weight[:, k], whole.weight)
    for i, own in enumerate(OWN):
        gap = X[own] @ PARAMS["w"] + PARAMS["b"] - Y[own]
        np.testing.assert_allclose(loss[i], np.square(gap).mean())
        np.testing.assert_allclose(g["w"][i], 2 * gap @ X[own] / len(own))
    program = str(jax.make_jaxpr(lambda c, key: c.each(one, key=key))(clients, KEY))
    assert "random_bits" not in program and "argsort" not in program


@pytest.mark.parametrize("options", [{"block": 4}, {"host": True}], ids=lambda o: [*o][0])
def test_full_batches_in_blocks_and_from_the_host(options):
    go = lambda clients: simulation(
        FedAvg(lr=0.1, epochs=2), clients, Uniform(N, 4), {"w": jnp.zeros(3), "b": jnp.zeros(())}
    )
    plain, other = go(full()), go(full(**options))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), plain, other)


def simulation(alg, clients, network, params, rounds=6):
    return jaxfl.run(alg, clients, network, params, KEY, rounds=rounds, chunk=rounds // 2)


def mean_squares(i, x):
    """Loss and gradient of a client, by hand."""
    a = np.column_stack([X[OWN[i]], np.ones(len(OWN[i]))])
    gap = a @ x - Y[OWN[i]]
    return np.square(gap).mean(), 2 * gap @ a / len(gap)


def stacked(x):
    return np.column_stack([x["w"], x["b"]])


def test_full_gradients_of_methods_that_draw():
    """D-SGD, gradient tracking and local steps are their recurrences, without any randomness."""
    network, lr, rounds = topology("ring", N), 0.05, 6
    w = np.asarray(comm.to_dense(network.w))
    start = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    go = lambda alg, net: simulation(alg, full(), net, start, rounds)
    g = lambda x: np.stack([mean_squares(i, x[i])[1] for i in range(N)])

    x = np.zeros((N, 4))
    for _ in range(rounds):
        losses = [mean_squares(i, x[i])[0] for i in range(N)]
        x = w @ (x - lr * g(x))
    ours = go(DSGD(lr=lr), network)
    np.testing.assert_allclose(stacked(ours.state.params), x, atol=1e-12)
    np.testing.assert_allclose(ours.history.loss[-1], np.mean(losses), atol=1e-12)

    x = np.zeros(4)
    for _ in range(rounds):
        local = np.tile(x, (N, 1))
        for _ in range(2):
            local -= lr * g(local)
        x = local.mean(0)
    for steps in ({"steps": 2}, {"epochs": 2}):  # an epoch is one step
        ours = go(FedAvg(lr=lr, **steps), Uniform(N, N))
        np.testing.assert_allclose(np.append(*ours.state.params.values())[[1, 2, 3, 0]], x)
        np.testing.assert_allclose(ours.history.grads, 2)

    data = np.concatenate([np.full(c, 1 / c) for c in COUNTS])[:, None]  # clients weigh the same
    rows = np.concatenate(OWN)
    a = np.column_stack([X[rows], np.ones(len(rows))])
    optimum = np.linalg.solve(a.T @ (data * a), a.T @ (data[:, 0] * Y[rows]))
    for alg in (GradientTracking(lr=lr), ExactDiffusion(lr=lr)):
        ours = simulation(alg, full(), network, start, 2400)
        np.testing.assert_allclose(stacked(ours.state.params), np.tile(optimum, (N, 1)), atol=1e-6)


def test_relabelled_clients_draw_the_same(drawn):
    """Keys follow the identity, not the position."""
    order, plain, moved = drawn
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), plain, moved)


def test_old_keys_and_no_x64():
    clients = make()
    one = lambda client, key: (client.draw(key), client.epochs(key, 2), client.all(key))
    with jax.enable_x64(False):
        plain = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == float else a, clients)
        draw, epochs, all = jax.eval_shape(lambda c: c.each(one, key=jax.random.PRNGKey(0)), plain)
    for xi, shape in ((draw, (BATCH,)), (epochs, (6, BATCH)), (all, (9,))):
        assert xi.index.shape == xi.weight.shape == (N, *shape)
        assert (xi.index.dtype, xi.weight.dtype) == (jnp.int32, jnp.float32)
        assert xi.key.shape == (N, *shape[:-1], 2)


# Losses -------------------------------------------------------------------------------------------

PARAMS = {"w": np.array([0.5, -1.0, 2.0]), "b": np.array(0.25)}
WEIGHT = np.array([0.0, 2.0, 1.0, 0.5, 0.0])
INDEX = np.array([0, 1, 2, 1, 99])  # beyond its own examples: clipped, weight 0


def xi(weight):
    return Sample(INDEX, weight, KEY)


def by_hand(i):
    own = OWN[i][np.minimum(INDEX, COUNTS[i] - 1)]
    x, w = X[own], WEIGHT / WEIGHT.sum()
    error = x @ PARAMS["w"] + PARAMS["b"] - Y[own]
    return w @ error**2, {"w": x.T @ (2 * w * error), "b": 2 * w @ error}


@pytest.fixture(scope="module")
def losses():
    """Losses and gradients of all clients; policies of precision in float32."""
    narrow = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float32), tree)
    policies = {
        p: make(data={**DATA, "x": narrow(X), "y": narrow(Y)}, precision=p)
        for p in ("float32", "tf32", "bfloat16")
    }

    def program(clients, several, policies, params):
        some = lambda c, key: c.grad(params, xi(WEIGHT))
        none = lambda c, key: c.grad(params, xi(0 * WEIGHT))
        single = jax.tree.map(lambda a: a.astype(jnp.float32), params)
        half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
        many = Sample(jnp.zeros(1000, int), jnp.ones(1000), KEY)
        out = {
            "grad": clients.each(some, key=KEY),
            "none": clients.each(none, key=KEY),
            "tasks": several.each(some, key=KEY),
            "half": policies["float32"].each(lambda c, key: c.grad(half, many), key=KEY),
        }
        for p, c in policies.items():
            out[p] = c.each(lambda c, key: c.grad(single, xi(WEIGHT)), key=KEY)
        return out

    return run(program, make(), make(tasks), policies, PARAMS)


@pytest.mark.parametrize("i", range(N))
def test_loss_and_gradient(losses, i):
    want, g = by_hand(i)
    for name, factor in (("grad", 1), ("tasks", 2)):  # several tasks: their mean
        loss, got = losses[name]
        np.testing.assert_allclose(loss[i], factor * want, rtol=1e-14)
        for leaf in ("w", "b"):
            np.testing.assert_allclose(got[leaf][i], factor * g[leaf], rtol=1e-13)


def test_nothing_but_padding_is_0(losses):
    loss, g = losses["none"]
    assert (loss == 0).all() and all((a == 0).all() for a in jax.tree.leaves(g))


@pytest.mark.parametrize("policy", ["float32", "tf32", "bfloat16"])
def test_precision_of_local_work(losses, policy):
    loss, g = losses[policy]
    assert loss.dtype == np.float32 and all(a.dtype == np.float32 for a in jax.tree.leaves(g))
    tolerance = 0.05 if policy == "bfloat16" else 1e-5  # tf32 is float32 on the CPU
    for i in range(N):
        want = by_hand(i)
        np.testing.assert_allclose(loss[i], want[0], rtol=tolerance)
        np.testing.assert_allclose(g["w"][i], want[1]["w"], rtol=tolerance, atol=tolerance)


def test_models_in_bfloat16_have_losses_in_float32(losses):
    """1000 equal examples: a sum in bfloat16 stops at 256."""
    loss, g = losses["half"]
    own = [o[0] for o in OWN]
    error = X[own] @ PARAMS["w"] + PARAMS["b"] - Y[own]
    assert loss.dtype == np.float32 and g["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(loss, error**2, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_precision_reaches_the_matrix_products(precision):
    """ "float32" must say so: left alone, GPUs multiply in TF32."""
    clients = make(precision=precision)
    text = str(
        jax.make_jaxpr(lambda c: c.each(lambda c, key: c.value(PARAMS, c.all(key)), key=KEY))(
            clients
        )
    )
    (line,) = [t for t in text.splitlines() if "precision" in t] or [""]
    assert {"float32": "HIGHEST", "tf32": "HIGH)", "bfloat16": ""}[precision] in line
    assert ("bf16" in text) == (precision == "bfloat16")


# Weights ------------------------------------------------------------------------------------------


def cohort(idx, weight):
    send = Send(np.zeros(len(idx), bool), idx, idx < N)
    return Cohort(np.int32(0), idx, weight, send, Links())


def test_weights_combine_the_net_and_the_counts():
    clients, idx = make(), np.array([4, N, 0])
    program = lambda clients, net: [clients.weights(net, w) for w in ("uniform", "count")]
    uniform, count = run(program, clients, cohort(idx, np.array([1.0, 0.0, 1.0])))
    np.testing.assert_allclose(uniform, [0.5, 0, 0.5])
    np.testing.assert_allclose(count, [9 / 12, 0, 3 / 12])
    uniform, count = run(program, clients, cohort(np.full(3, N), np.zeros(3)))
    assert (uniform == 0).all() and (count == 0).all()
    with pytest.raises(ValueError, match="uniform.*count.*'size'"):
        clients.weights(cohort(idx, np.ones(3)), "size")


# Each and mean ------------------------------------------------------------------------------------

BLOCKS = (0, 1, 2, 4, 6)  # automatic, divisors of 6, not a divisor, n


@pytest.fixture(scope="module")
def blocked():
    """`each` and `mean` with every block size, honest and under attack, in one program."""
    clients = make()
    who = np.array([True, False, False, True, False, False])
    sends = {
        "honest": Send(np.zeros(N, bool), np.arange(N), np.ones(N, bool)),
        "local": Send(who, np.arange(N), ~who | who, SignFlip(3.0), Noisy(0.1)),
        "global": Send(who, np.arange(N), np.arange(N) != 4, ALIE(1.5)),
    }
    weights = np.array([0.3, 0.1, 0.2, 0.4, 0.0, 0.5])
    x = RNG.normal(size=(N, 3))

    def one(client, x, key):
        noise = jax.random.normal(key, (3,))
        bad = jnp.where(client.id == 4, jnp.nan, 0)  # its weight is 0
        message = {"a": x + noise + bad, "b": (noise + bad).astype(jnp.bfloat16)}
        return message, (client.count, jnp.zeros((0, 2)))

    def program(clients, sends, weights, x):
        out = {}
        for block in BLOCKS:
            c = clients.replace(block=block)
            out[block] = {"each": c.each(one, x, key=KEY)}
            for name, send in sends.items():
                if name == "honest" or block in (0, 4):
                    out[block][name] = c.mean(one, x, weights=weights, send=send, key=KEY)[::2]
        return out

    return weights, x, run(program, clients, sends, weights, x)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_change_nothing(blocked, block):
    weights, x, out = blocked
    same = lambda a, b: np.testing.assert_array_equal(a.astype(float), b.astype(float))
    jax.tree.map(same, out[block]["each"], out[0]["each"])
    for name in out[block].keys() - {"each"}:
        mean, (count, empty) = out[block][name]
        assert mean["a"].dtype == float and mean["b"].dtype == jnp.bfloat16
        np.testing.assert_allclose(mean["a"], out[0][name][0]["a"], rtol=1e-13)
        np.testing.assert_allclose(
            mean["b"].astype(float), out[0][name][0]["b"].astype(float), rtol=1e-2
        )
        same(count, COUNTS)
        assert empty.shape == (N, 0, 2)


def test_mean_is_the_mixture_of_what_is_sent(blocked):
    weights, x, out = blocked
    sent = out[0]["each"][0]["a"]
    live, bad = weights > 0, np.array([0, 3])
    want = weights[live] @ sent[live]
    np.testing.assert_allclose(out[0]["honest"][0]["a"], want, rtol=1e-13)
    honest = sent[[1, 2, 5]]  # they alone make up what ALIE sends
    rows = sent.copy()
    rows[bad] = honest.mean(0) - 1.5 * honest.std(0, ddof=1)
    np.testing.assert_allclose(out[0]["global"][0]["a"], weights[live] @ rows[live], rtol=1e-12)
    for name in ("local", "global"):
        mean = out[0][name][0]["a"]
        assert np.isfinite(mean).all() and not np.allclose(mean, want, atol=0.01)


def test_blocks_are_even_and_chosen_by_size(monkeypatch):
    clients, one = make(), lambda client, key: jnp.zeros((25,))  # 200 bytes
    rows = (clients.start, clients.count, clients.id)
    block = lambda clients: clients._block(lambda *rows: one(None, None), rows, [])
    assert [block(clients.replace(block=b)) for b in (1, 2, 3, 4, 5, 6, 9)] == [1, 2, 3, 3, 3, 6, 6]
    assert block(clients) == N
    monkeypatch.setattr("jaxfl.engine.clients._CPU", (1199, 800))
    assert block(clients) == 3
    monkeypatch.setattr("jaxfl.engine.clients._CPU", (1200, 800))
    assert block(clients) == N
    monkeypatch.setattr("jaxfl.engine.clients._CPU", (0, 1))
    assert block(clients) == 1
    # what a client draws counts, up to what it has
    row = sum(a[0].nbytes for a in jax.tree.leaves(clients.data.arrays))
    drawn = lambda count: clients._block(lambda *rows: one(None, None), rows, [count])
    most = 200 + clients.largest * row
    monkeypatch.setattr("jaxfl.engine.clients._CPU", (N * most, 1))
    assert drawn(10**6) == N
    monkeypatch.setattr("jaxfl.engine.clients._CPU", (N * most - 1, 1))
    assert drawn(10**6) == 1


def test_clients_over_devices():
    """Spread over four devices, in blocks: nothing moves but the sum, and nothing changes."""
    n = 16
    partition = (np.arange(2 * n) % SIZE, np.arange(n) * 2, np.full(n, 2))
    clients = make(partition=partition)
    mesh = jax.make_mesh((4,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
    send = Send(np.zeros(n, bool), np.arange(n), np.ones(n, bool))
    weights = RNG.random(n)

    def program(clients, x, weights):
        one = lambda client, x, key: (x + jax.random.normal(key, (3,)), client.id)
        a, _ = clients.each(one, x, key=KEY)
        return a, clients.mean(one, x, weights=weights, send=send, key=KEY)[::2]

    x = RNG.normal(size=(n, 3))
    plain = run(program, clients, x, weights)
    np.testing.assert_allclose(plain[1][0], weights @ plain[0], rtol=1e-13)
    spread = clients.spread(mesh)
    place = jax.device_put(x, jax.NamedSharding(mesh, jax.P("clients")))
    for block in (8, 12):  # two clients of every device at once; three, so that one fills up
        compiled = jax.jit(program).lower(spread.replace(block=block), place, weights).compile()
        a, (mean, ids) = compiled(spread.replace(block=block), place, weights)
        text = compiled.as_text()
        assert a.sharding.spec == ids.sharding.spec == jax.P("clients")
        assert "all-reduce" in text and "all-gather" not in text and "permute" not in text
        np.testing.assert_array_equal(a, plain[0])
        np.testing.assert_array_equal(ids, np.arange(n))
        np.testing.assert_allclose(mean, plain[1][0], rtol=1e-13)
    assert spread[jnp.arange(6)]._groups() == 1  # a cohort that does not spread evenly
    with pytest.raises(ValueError, match="6 clients do not spread evenly over 4.*such as 8"):
        make().spread(mesh)
    with pytest.raises(ValueError, match="axis 'nodes'.*make_mesh"):
        clients.spread(mesh, "nodes")
    with pytest.raises(ValueError, match="types Auto"):
        clients.spread(jax.make_mesh((4,), ("clients",), (jax.sharding.AxisType.Explicit,)))


def test_cohorts_with_empty_slots():
    """An empty slot computes something, and its weight 0 keeps it out."""
    clients, idx = make(), np.array([4, N, 0, N])
    net = cohort(idx, np.array([1.0, 0, 1, 0]))

    def program(clients, net):
        one = lambda client, key: (jax.random.normal(key, (2,)), client.count)
        all, _ = clients.each(one, key=KEY)
        w = clients.weights(net, "count")
        return all, clients[net.idx].mean(one, weights=w, send=net.send, key=KEY)[::2]

    all, (mean, count) = run(program, clients, net)
    np.testing.assert_allclose(mean, (9 * all[4] + 3 * all[0]) / 12, rtol=1e-14)
    assert count[0] == 9 and count[2] == 3 and len(clients[idx]) == 4


# Held-out data ------------------------------------------------------------------------------------


def test_split_holds_out_a_share_of_every_client():
    crop = augmentation.crop_and_flip()
    clients = make(augment=crop)
    train, held = clients.split(test=0.3, seed=1)
    for i, own in enumerate(OWN):
        parts = [
            np.asarray(c.data.order)[c.start[i] : c.start[i] + c.count[i]] for c in (train, held)
        ]
        if len(own) == 1:
            assert list(parts[0]) == list(parts[1]) == list(own)
            continue
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.sort(own))
        assert len(parts[1]) == max(1, round(0.3 * len(own)))
    assert train.largest == 6 and held.largest == 3
    assert train.augment == crop and held.augment is not crop  # only training is augmented
    assert (
        clients.split(test=0.3, seed=np.random.default_rng(1))[1].data.order == held.data.order
    ).all()
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match=r"test must be in \(0, 1\)"):
            clients.split(test=share)


# Augmentation -------------------------------------------------------------------------------------


def test_crop_and_flip():
    """Each example its own draw, uniform; a sample asked twice is the same."""
    pad, size, total = 1, 4, 900
    images = RNG.integers(1, 255, size=(2, size, size, 2)).astype(np.uint8)
    data = {"x": images, "y": np.arange(2)}
    crop = augmentation.crop_and_flip(pad)
    assert crop == augmentation.crop_and_flip(1) and hash(crop) == hash(
        augmentation.crop_and_flip(1)
    )
    assert crop != augmentation.crop_and_flip(1, flip=False)
    clients = make(data=data, partition=([0, 1], [0, 1], [1, 1]), augment=crop)
    rest = make(data=data, partition=([0, 1], [0, 1], [1, 1]), augment=crop.__class__(0, False))

    def program(clients, rest):
        def one(client, key):
            xi = Sample(jnp.zeros(total, int), jnp.ones(total), key)
            return client.get(xi), client.get(xi), client.get(xi._replace(key=KEY))

        return clients.each(one, key=KEY), rest.each(one, key=KEY)[0]

    (first, again, other), plain = run(program, clients, rest)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert (first["x"] != other["x"]).any() and first["x"].dtype == np.uint8
    assert (first["y"] == np.arange(2)[:, None]).all()
    assert (plain["x"] == images[:, None]).all()
    for i in range(2):
        padded = np.pad(images[i], ((pad, pad), (pad, pad), (0, 0)))
        crops = [padded[a : a + size, b : b + size] for a in range(3) for b in range(3)]
        crops = np.array([*crops, *(c[:, ::-1] for c in crops)])
        hits = (first["x"][i][:, None] == crops).all((2, 3, 4))
        assert (hits.sum(1) == 1).all()
        p = 1 / len(crops)
        assert np.abs(hits.sum(0) - total * p).max() <= 5 * np.sqrt(total * p * (1 - p))


def test_crop_and_flip_says_what_it_needs():
    with pytest.raises(ValueError, match=r"\[B, H, W, C\], got \(3, 8, 8\)"):
        augmentation.crop_and_flip()({"x": np.zeros((3, 8, 8))}, KEY)
    with pytest.raises(ValueError, match="pad must be >= 0"):
        augmentation.crop_and_flip(-1)


# Bad input ----------------------------------------------------------------------------------------

ALL = np.arange(SIZE)
ONE = (ALL, np.array([0]), np.array([SIZE]))


class Unhashable:
    __hash__ = None

    def __call__(self, *args):
        return None


NAN, HALF = np.where(ALL == 7, np.nan, X[:, 0]), jnp.full((SIZE, 2), jnp.inf, jnp.bfloat16)
NOBODY = np.zeros(0, int)
BAD_DATA = [
    ({"x": NAN}, r"\['x'\] holds NaN.*row 7.*nan_to_num"),
    ({"x": HALF}, r"holds NaN or inf.*row 0"),
    ({"x": X, "y": np.array(["a"] * SIZE)}, r"\['y'\] must hold numbers, got dtype <U1.*unique"),
    ({"x": np.array([None] * SIZE)}, "must hold numbers, got dtype object"),
    ({"x": X, "y": Y[:-1]}, "same number of rows.*30.*29"),
    ({"x": X, "y": np.float64(1)}, "same number of rows"),
    ({}, "holds no array"),
]
BAD_PARTITIONS = [
    ((ALL, [0, 5, 5], [5, 0, 25]), r"clients \[1\] have no example.*minimum=1"),
    ((ALL, NOBODY, NOBODY), "got shapes"),
    ((ALL, [0, 1], [SIZE]), "got shapes"),
    ((ALL + 1, [0], [SIZE]), "index the 30 examples.*from 1 to 30.*iid"),
    ((ALL, [10], [SIZE]), r"within its order \[30\]"),
    ((ALL + 0.5, [0], [SIZE]), "order must be integers, got float64"),
]
BAD = [
    *(({"data": data}, message) for data, message in BAD_DATA),
    *(({"partition": partition}, message) for partition, message in BAD_PARTITIONS),
    ({"block": -1}, "batch must be >= 1 .*and block >= 0, got 4 and -1"),
    ({"precision": "half"}, "one of .*'bfloat16'.*got 'half'"),
    ({"augment": Unhashable()}, "augment must be hashable.*Unhashable a frozen dataclass"),
    ({"loss": Unhashable()}, "loss must be hashable"),
]


@pytest.mark.parametrize("options, message", BAD)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_batch():
    for batch in (0, "none", "ALL"):
        with pytest.raises(ValueError, match="batch must be (>= 1|a whole number)"):
            Clients.make(DATA, PARTITION, squares, batch=batch)


def test_good_data_of_other_kinds():
    data = {"x": jnp.ones((SIZE, 2), jnp.bfloat16), "m": ALL > 3, "y": list(range(SIZE))}
    arrays = make(data={k: np.asarray(v) for k, v in data.items()}, partition=ONE).data.arrays
    assert arrays["x"].dtype == jnp.bfloat16 and arrays["m"].dtype == bool


def test_bad_cohorts():
    clients = make()
    with pytest.raises(IndexError, match=r"0\.\.5, or 6 for an empty slot, got 1 to 7"):
        clients[jnp.array([1, 7])]
    with pytest.raises(IndexError):
        clients[jnp.array([-1])]
    with pytest.raises(TypeError, match="array of clients"):
        clients[jnp.array(1)]


BAD_LOSSES = {
    "scalar": lambda p, e, k: squares(p, e, k).mean(),
    "number": lambda p, e, k: 0.0,
    "tuple": lambda p, e, k: (squares(p, e, k), 1),
    "shape": lambda p, e, k: squares(p, e, k)[:-1],
}


@pytest.mark.parametrize("what", BAD_LOSSES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_is_one_number_per_example(what, precision):
    clients = make(BAD_LOSSES[what], precision=precision)
    with pytest.raises(LossShapeError, match=r"shape \(4,\).*instead of.*mean\(\)"):
        jax.eval_shape(lambda: clients.each(lambda c, key: c.value(PARAMS, c.draw(key)), key=KEY))
