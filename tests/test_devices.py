"""Eight devices: equal to one, and nothing moves but what must, counted in the compiled program."""

import os
import re
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flags import FLAGS

from jaxfl import Clients, cli, compare, grid, networks, simulate, spread
from jaxfl.algorithms import DSGD, FedAvg, Scaffold
from jaxfl.engine import comm
from jaxfl.studies.comparison import Comparison

N, D = 32, 57  # no other size of the program is 57
RNG = np.random.default_rng(0)
AUTO = jax.sharding.AxisType.Auto
X, Y = RNG.normal(size=(3 * N, D)), RNG.normal(size=3 * N)
KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def mesh(**axes):
    return jax.make_mesh((*axes.values(),), (*axes,), axis_types=(AUTO,) * len(axes))


def clients(block=0):
    def loss(x, examples, key):
        return jnp.square(examples["x"] @ x - examples["y"])

    split = (np.arange(3 * N), np.arange(N) * 3, np.full(N, 3))
    return Clients.make({"x": X, "y": Y}, split, loss, batch=2, block=block)


def moved(compiled):
    """The collectives that carry models: `{(kind, rows): how often}`."""
    found = {}
    for shapes, kind in re.findall(rf"= (.+?) ({KINDS})(?:-start)?\(", compiled.as_text()):
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes):
            *rows, last = map(int, shape.split(",")) if shape else (1,)
            if last == D:
                name = (kind, int(np.prod(rows)))
                found[name] = found.get(name, 0) + 1
    return found


def both(alg, network, block=0):
    """The compiled program on eight devices; its run and that on one device."""
    over = mesh(clients=8)
    program = jax.jit(lambda *a: simulate(*a, jnp.zeros(D), jax.random.key(1), rounds=2))
    many = (alg, clients(block).spread(over), spread(network, over))
    compiled = program.lower(*many).compile()
    return compiled, compiled(*many), program(alg, clients(block), network)


def equal(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), a, b)


def crossing(network):
    """Rows that each device must send to each other one: `[from, to]`."""
    w = np.asarray(comm.to_dense(network.w)) != 0
    used = w.reshape(8, N // 8, N).any(1)  # [receiver device, sender]
    counts = used.reshape(8, 8, N // 8).sum(2).T
    np.fill_diagonal(counts, 0)
    return counts


@pytest.mark.parametrize("block", [0, 16])
def test_a_ring_is_two_permutes(block):
    compiled, many, one = both(DSGD(lr=0.01), networks.topology("ring", N), block)
    assert moved(compiled) == {("collective-permute", 1): 2}
    equal(many, one)
    assert many.state.params.sharding.spec == jax.P("clients")


def test_shifts_move_what_crosses():
    compiled, many, one = both(DSGD(lr=0.01), networks.topology("exponential", N))
    assert moved(compiled) == {
        ("collective-permute", 1): 1,
        ("collective-permute", 2): 1,
        ("collective-permute", 4): 3,
    }
    equal(many, one)


@pytest.mark.parametrize("name", ["torus", "erdos_renyi"])
def test_neighbours_move_what_crosses(name):
    """One permute per distance between devices, of as many rows as any pair needs."""
    options = {"p": 0.1} if name == "erdos_renyi" else {}
    network = networks.topology(name, N, **options)
    assert isinstance(network.w, comm.Near)
    block = 16 if name == "torus" else 0
    compiled, many, one = both(DSGD(lr=0.01, order="cta"), network, block)
    equal(many, one)
    counts, want = crossing(network), {}
    for offset in range(1, 8):
        if most := max(counts[p, (p + offset) % 8] for p in range(8)):
            want["collective-permute", most] = want.get(("collective-permute", most), 0) + 1
    assert moved(compiled) == want
    if name == "torus":  # 4 x 8, half a row of it on each device
        assert want == {("collective-permute", 2): 2, ("collective-permute", 4): 2}


@pytest.mark.parametrize(
    "network",
    [
        networks.Attacked(
            networks.Churn(networks.topology("ring", N), 0.8), networks.first(3, N), networks.IPM()
        ),
        networks.topology("one_peer_exponential", N),
    ],
    ids=["churn", "periodic"],
)
def test_changing_neighbours_move_no_more(network):
    compiled, many, one = both(DSGD(lr=0.01), network)
    equal(many, one)
    kinds = {kind for kind, _ in moved(compiled)}
    assert "collective-permute" in kinds and kinds <= {"collective-permute", "all-reduce"}
    assert max(rows for _, rows in moved(compiled)) <= N // 8


def test_exchange_is_mix():
    """The same sums, NaN rule, truth about oneself, dtypes and derivatives as without a mesh."""
    network = networks.topology("erdos_renyi", N, p=0.1)
    near = network.w
    there = spread(network, mesh(clients=8)).w
    x, own = RNG.normal(size=(2, N, 3, 2))
    x[5, 1], x[9], own[7, 0] = np.nan, np.nan, np.inf
    dead = jnp.where(near.idx == 9, 0.0, near.w)

    @jax.jit
    def program(w):
        square = lambda values, x: jnp.square(comm.mix(w.replace(w=values), x)).sum()
        whole = jnp.nan_to_num(x, posinf=0)
        return (
            comm.mix(w, jnp.asarray(x)),
            comm.mix(w, jnp.asarray(x), own),
            comm.mix(w.replace(w=dead), jnp.asarray(x), own),
            comm.mix(w, jnp.asarray(x, jnp.bfloat16)),
            jax.grad(square, (0, 1))(w.w, whole),
            jax.vmap(comm.mix, in_axes=(None, 0))(w, jnp.stack([whole, 2 * whole])),
        )

    alone, many = program(near), program(there)
    assert many[3].dtype == jnp.bfloat16
    equal(alone, many)
    assert np.isnan(many[0][9]).all() and np.isfinite(many[2]).all((1, 2)).sum() > N // 2


def test_cohorts_are_computed_where_they_lie():
    """Every device computes its part of the cohort, although 12 do not divide evenly by 8."""
    compiled, many, one = both(FedAvg(lr=0.01, steps=3), networks.Uniform(N, 12))
    # the second in the loop that runs only where a message is not finite
    assert moved(compiled) == {("all-reduce", 1): 2}
    equal(many, one)
    widest = [int(a) for a in re.findall(r"\[(\d+),2,57\]", compiled.as_text())]
    assert set(widest) == {2}  # clients of a device whose examples, two each, it computes on


def test_states_of_clients_stay():
    """Of SCAFFOLD's variates, rows of the cohort move, and no device holds all of them."""
    compiled, many, one = both(Scaffold(lr=0.01, steps=2), networks.Uniform(N, 8))
    equal(many, one)
    assert many.state.c_i.sharding.spec == jax.P("clients")
    assert max(rows for _, rows in moved(compiled)) == 8
    # of the model and of c, and both again in loops that run only where one is not finite
    assert moved(compiled)["all-reduce", 1] == 4


@pytest.mark.parametrize(
    "alg, network",
    [
        (Scaffold(lr=0.1, steps=2), networks.Uniform(N, 8)),
        (DSGD(lr=0.1), networks.topology("torus", N)),
    ],
    ids=["cohort", "graph"],
)
def test_sweeps_are_a_second_axis(alg, network):
    over = mesh(sweep=2, clients=4)
    alone = grid(alg, lr=[0.001, 0.003, 0.01, 0.03])

    def program(alg, clients, network):
        key = jax.random.key(1)
        run = lambda alg: simulate(alg, clients, network, jnp.zeros(D), key, rounds=2)
        return jax.vmap(run)(alg)

    many = spread(alone, over, "sweep"), spread(clients(), over), spread(network, over)
    compiled = jax.jit(program).lower(*many).compile()
    run = compiled(*many)
    equal(run, program(alone, clients(), network))
    stacked = run.state.params if isinstance(alg, DSGD) else run.state.c_i
    assert stacked.sharding.spec == jax.P("sweep", "clients")
    # runs on a device times the cohort, or the nodes of one device: never all nodes, nor all runs
    assert max(rows for _, rows in moved(compiled)) <= 2 * 8


def test_what_does_not_spread_is_said():
    over = mesh(clients=8)
    with pytest.raises(ValueError, match="30 nodes do not spread evenly over 8.*such as 32 nodes"):
        spread(networks.topology("ring", 30), over)
    with pytest.raises(ValueError, match=r"lr has shape \(3,\).*evenly over 8 devices"):
        spread(grid(FedAvg, lr=[0.1, 0.2, 0.3]), over)
    with pytest.raises(ValueError, match="axis 'nodes'.*make_mesh"):
        spread(networks.topology("ring", N), over, "nodes")
    dense = networks.topology("complete", N)
    assert spread(dense, over) is dense


def test_two_hosts(tmp_path):
    """`jaxfl run --distributed` in two processes: the numbers of one process with two devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        "--data wine --clients 4 --cohort 4 --minimum 1 --rounds 2 --every 1 --seeds 1 --lr 0.1"
    )
    meet = f"--distributed --coordinator 127.0.0.1:{port} --processes 2 --process"
    words = [sys.executable, "-m", "jaxfl.cli", "run", "dsgd @ path", *options.split()]
    setting = os.environ | {
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count=1",
    }
    hosts = [
        subprocess.Popen(
            [*words, "--out", str(tmp_path / f"{process}"), *meet.split(), f"{process}"],
            env=setting,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    deadline, said = time.monotonic() + 240, []
    for host in hosts:
        try:
            said.append(host.communicate(timeout=max(1, deadline - time.monotonic()))[0])
        except subprocess.TimeoutExpired:
            host.kill()
            said.append(f"not done in 240 s\n{host.communicate()[0]}")
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(said)
    assert "difference" in said[0] and "difference" not in said[1]
    assert not (tmp_path / "1").exists()  # only the first one writes
    many = Comparison.load(tmp_path / "0")
    one = compare(many.config, mesh=mesh(clients=2))
    assert one.config.algorithms == ("dsgd @ path",)
    for name in ("train_loss", "loss", "accuracy", "worst", "consensus"):
        np.testing.assert_allclose(many.results[name], one.results[name], rtol=1e-9, err_msg=name)


def test_processes_that_cannot_meet(capsys):
    for words in ("--processes 2", "--distributed --coordinator h:1 --processes 2 --process 2"):
        assert cli.main(["run", "fedavg", *words.split()]) == 2
        assert "go together, with --distributed; for example" in capsys.readouterr().err
