"""Checkpoints: runs go on where they were, whatever stopped them; damage is never read."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import CLIENTS, KEY, PARTITION, X0, A, B, N, squares

import jaxfl
from jaxfl import Checkpoints, Clients, networks
from jaxfl.algorithms import Scaffold
from jaxfl.runs import checkpoint
from jaxfl.runs.checkpoint import Interrupted, graceful
from jaxfl.runs.folder import sealed
from jaxfl.runs.identity import identity
from jaxfl.runs.run import run
from jaxfl.runs.writers import JSONLines

ROUNDS, CHUNK = 12, 4
WORLD = networks.Uniform(N, 3)
MESH = jax.make_mesh((8,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))
SCAFFOLD = Scaffold(lr=0.05, steps=2)
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12), a, b)


def norm(state):
    return {"norm": jnp.abs(state.params).sum(), "params": state.params}


def go(folder=None, alg=SCAFFOLD, clients=CLIENTS, network=WORLD, key=KEY, **options):
    options = dict(rounds=ROUNDS, chunk=CHUNK, every=2, evaluate=norm, checkpoint=folder) | options
    return run(alg, clients, network, X0, key, **options)


def stop(at):
    """A callback that is an accident."""

    def callback(t, part):
        if t == at:
            raise ZeroDivisionError

    return callback


def script(name):
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def whole():
    """A run that nothing interrupts."""
    return go()


def test_the_same_call_goes_on(tmp_path, whole):
    """After an accident, when it is done, and when it asks for more; in every bit."""
    for at in (8, 12):  # the chunk at which it ends is lost, the one before is not
        with pytest.raises(ZeroDivisionError):
            go(tmp_path, callbacks=[stop(at)])
        assert Checkpoints(tmp_path).latest == at - CHUNK
    seen = []
    end = go(tmp_path, callbacks=[lambda t, part: seen.append(t)])
    assert seen == [12] and Checkpoints(tmp_path).saved == [8, 12]
    same(end, whole)
    assert jax.tree.structure(end) == jax.tree.structure(whole)
    same(go(tmp_path, callbacks=[stop(12)]), whole)  # nothing is left to do
    more = go(tmp_path, rounds=20)
    same(more, go(rounds=20))
    with pytest.raises(ValueError, match="round 20, beyond the 12 asked for; ask for rounds=20"):
        go(tmp_path)


def test_another_run_is_refused(tmp_path, whole):
    """By name of what differs; where clients are is no difference."""
    go(tmp_path)
    split = (PARTITION[0][::-1].copy(), *PARTITION[1:])
    other = {
        r"algorithm.lr was 0.05, is 0.1": dict(alg=Scaffold(lr=0.1, steps=2)),
        r"algorithm.steps was 2, is 3": dict(alg=Scaffold(lr=0.05, steps=3)),
        r"key was threefry2x32 0 7, is threefry2x32 0 8": dict(key=jax.random.key(8)),
        r"every was 2, is 4": dict(every=4),
        r"network.size was 3, is 4": dict(network=networks.Uniform(N, 4)),
        r"clients.data.order was int \[\d+\] \w+, is int \[": dict(
            clients=Clients.make({"a": A, "b": B}, split, squares, batch=3)
        ),
        r"clients.data.arrays.a was float64 \[.*\] \w+, is float64": dict(
            clients=Clients.make({"a": A + 1, "b": B}, PARTITION, squares, batch=3)
        ),
        r"evaluate.func was norm, is <lambda>": dict(evaluate=lambda state: norm(state)),
    }
    for message, options in other.items():
        with pytest.raises(ValueError, match=f"checkpoint of another run: .*{message}"):
            go(tmp_path, **options)
    same(go(tmp_path, clients=CLIENTS.replace(block=2)), whole)
    with pytest.raises(ValueError, match="checkpoint must be a folder or Checkpoints, got 3"):
        go(3)


@pytest.mark.parametrize("kind", ["devices", "host"])
def test_elastic(tmp_path, kind):
    """Saved here, resumed there, and back: equal to rounding; there and there, in every bit."""
    here, there = {"every": 0, "evaluate": None}, {"clients": CLIENTS.spread(MESH)}
    if kind == "host":
        there = {"clients": Clients.make({"a": A, "b": B}, PARTITION, squares, batch=3, host=True)}
    there, whole = here | there, go(**here)
    for t, options in ((4, here), (8, there), (12, here | {"offload": kind == "host"})):
        end = go(tmp_path / "a", rounds=t, **options)
        assert Checkpoints(tmp_path / "a").latest == t
    close(end, whole)
    with pytest.raises(ZeroDivisionError):
        go(tmp_path / "b", callbacks=[stop(8)], **there)
    end, never = go(tmp_path / "b", **there), go(**there)
    same(end, never)
    for a, b in zip(jax.tree.leaves(end.state), jax.tree.leaves(never.state)):
        assert type(a) is type(b)
        assert isinstance(a, np.ndarray) or a.sharding.device_set == b.sharding.device_set


def test_where_things_are_is_no_difference():
    """A graph over devices has other fields; clients on the host have other types."""
    ring = networks.LinkFailures(networks.topology("ring", N), 0.3)
    host = Clients.make({"a": A, "b": B}, PARTITION, squares, batch=3, host=True)
    for a, b in (
        (ring, jaxfl.spread(ring, MESH)),
        (CLIENTS, CLIENTS.spread(MESH)),
        (CLIENTS, host),
    ):
        assert identity(a=a) == identity(a=b)
    assert identity(a=ring) != identity(a=networks.LinkFailures(networks.topology("path", N), 0.3))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(tmp_path, whole, number):
    """The chunk is finished and saved; the error says how to go on; handlers are put back."""
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    kill = lambda t, part: t == 8 and os.kill(os.getpid(), number) and None
    with pytest.raises(KeyboardInterrupt, match="after round 8 of 12.*the same call") as error:
        go(tmp_path, callbacks=[kill])
    assert error.type is Interrupted and str(tmp_path) in str(error.value)
    assert Checkpoints(tmp_path).latest == 8
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    same(go(tmp_path), whole)


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal; processes in the background of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_stops_at_once(interruptible):
    with pytest.raises(KeyboardInterrupt), graceful() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still here")
    with pytest.raises(KeyboardInterrupt):  # without checkpoints, Ctrl-C is what it was
        go(callbacks=[lambda t, part: os.kill(os.getpid(), signal.SIGINT)])
    answers = []

    def elsewhere():
        with graceful() as asked:
            answers.append(asked())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert answers == [False]


def test_any_tree(tmp_path):
    """Random keys, narrow and wide numbers, empty and growing arrays, what JAX will overwrite."""
    tree = {
        "keys": jax.random.split(KEY, 3),
        "other": jax.random.key(1, impl="rbg"),
        "narrow": jnp.arange(5, dtype=jnp.bfloat16),
        "bits": np.array([True, False]),
        "empty": (np.zeros((0, 3), np.float32), None),
        "big": np.arange(3, dtype=">f8"),
        "strided": np.arange(12.0).reshape(3, 4)[:, ::2],
        "complex": np.array(1 + 2j),
        "numbers": [3, 2.5, True],
    }
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest is None
        with pytest.raises(ValueError, match="holds no checkpoint"):
            checkpoints.restore(tree)
        own = np.arange(4.0)
        for t in (1, 2):
            checkpoints.save(t, tree | {"history": np.arange(t), "own": own}, about=[1])
            own += 1  # it was copied
        sized = lambda t: tree | {"history": np.zeros(t, int), "own": own}
        t, found = checkpoints.restore(sized)
        assert t == 2 and checkpoints.saved == [2]
        np.testing.assert_array_equal(found.pop("own"), np.arange(4.0) + 1)
        np.testing.assert_array_equal(found.pop("history"), [0, 1])
        assert jax.tree.structure(found) == jax.tree.structure(tree)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree)):
            assert type(a) is type(b)
            if not isinstance(b, bool | int | float):
                assert a.dtype == b.dtype
                if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                    assert jax.random.key_impl(a) == jax.random.key_impl(b)
                    a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(a, b)
        plain = checkpoints.restore()[1]
        assert plain["numbers"][1] == 2.5 and plain["empty"][0].shape == (0, 3)
        with pytest.raises(ValueError, match=r"history is int64\[2\], `like` has int64\[3\]"):
            checkpoints.restore(sized(3))
        with pytest.raises(ValueError, match="name must be an array of numbers, got 'Ada'"):
            checkpoints.save(3, {"name": "Ada"})
        with pytest.raises(OSError, match="another process is writing"):
            Checkpoints(tmp_path).save(3, {})
    with pytest.raises(ValueError, match="keep must be >= 1, got 0"):
        Checkpoints(tmp_path, keep=0)


def test_several_at_a_time(tmp_path):
    """Threads, and folders in turns; every one has its own."""
    tree = lambda i, t: {"x": np.full(100, 100 * i + t)}

    def work(i):
        with Checkpoints(tmp_path / str(i)) as checkpoints:
            for t in range(1, 5):
                checkpoints.save(t, tree(i, t))

    many = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in many:
        thread.start()
    turns = [Checkpoints(tmp_path / str(i)) for i in (3, 4)]
    for t in range(1, 5):
        for i, checkpoints in enumerate(turns):
            checkpoints.save(t, tree(3 + i, t))
    for held in (*many, *turns):
        held.join() if isinstance(held, threading.Thread) else held.close()
    for i in range(5):
        checkpoints = Checkpoints(tmp_path / str(i))
        same(checkpoints.restore()[1], tree(i, 4))
        assert checkpoints.saved == [3, 4]


def test_how_often(tmp_path):
    """Every k rounds, every m minutes, after every chunk; and always at the end."""
    for options, saved in (
        (dict(rounds=3), [4, 8, 12]),
        (dict(rounds=5), [8, 12]),
        (dict(minutes=60.0), [12]),
        (dict(minutes=1e-9), [4, 8, 12]),
    ):
        checkpoints = Checkpoints(tmp_path / str(options), keep=9, **options)
        go(checkpoints)
        assert checkpoints.saved == saved
        checkpoints.close()
    with Checkpoints(tmp_path / "small", rounds=2, keep=9) as checkpoints:
        go(checkpoints, chunk=0)  # chunks are then no longer than that
        assert checkpoints.saved == [2, 4, 6, 8, 10, 12]


def damage(path):
    """Flips one bit."""
    b = bytearray(path.read_bytes())
    b[len(b) // 2] ^= 4
    path.write_bytes(b)


def test_damage_is_an_error_or_the_one_before(tmp_path, whole):
    """Flipped, truncated, foreign and of another format; what is left of it then goes away."""
    go(tmp_path)
    last = tmp_path / "12"
    data = max((last / "arrays").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    damage(data)
    with pytest.raises(ValueError, match=f"{last}.*{data.name}.*of round 8: .*fallback=True"):
        go(tmp_path)
    with pytest.warns(UserWarning, match="using the one of round 8"):
        end = go(Checkpoints(tmp_path, fallback=True))
    same(end, whole)
    same(go(tmp_path), whole)  # written again
    about = last / "jaxfl.json"
    meta = json.loads(about.read_text())
    for change, message in (
        (meta | {"t": 11}, "jaxfl.json' was changed"),
        (meta | {"format": 99}, "format 99, this jaxfl reads 2"),
        ({"format": 0}, "format 0"),
        ([], "not JSON"),
    ):
        new = isinstance(change, dict) and change.get("format") != meta["format"]
        about.write_text(sealed(change) if new else json.dumps(change))
        with pytest.raises(ValueError, match=f"{last}.*{message}"):
            go(tmp_path)
    about.write_bytes(about.read_bytes()[:50])
    with pytest.raises(ValueError, match="not JSON"):
        go(tmp_path)
    damage(tmp_path / "8" / "jaxfl.json")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="8/jaxfl.json|8 cannot be"):
        go(Checkpoints(tmp_path, fallback=True))
    with pytest.raises(ValueError, match="jaxfl.json', which jaxfl writes, is missing"):
        (tmp_path / "foreign").mkdir()
        jaxfl.load(tmp_path / "foreign")


def test_a_saved_model_is_checked_too(tmp_path):
    jaxfl.save(tmp_path / "model", {"x": np.random.default_rng(0).normal(size=99)})
    data = max(tmp_path.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    damage(data)
    with pytest.raises(ValueError, match=f"{tmp_path / 'model'} cannot be read.*{data.name}"):
        jaxfl.load(tmp_path / "model")


def test_fuzz(tmp_path):
    """A hundred mutants; benchmarks/fuzz_checkpoints.py has thousands."""
    found = script("fuzz_checkpoints").fuzz(100, 1, tmp_path)
    assert found["mutants"] >= 100 and found["wrong"] == 0
    assert {*found["outcomes"]} == {"newest", "older", "refused"}


def test_a_full_disk_loses_nothing(tmp_path, whole, monkeypatch):
    """No space in the background surfaces, what was saved stays, and the same call goes on."""
    seal, times = checkpoint._seal, []

    def full(path, meta):
        times.append(meta["t"])
        if meta["t"] == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(path, meta)

    monkeypatch.setattr(checkpoint, "_seal", full)
    with pytest.raises(OSError, match=r"12|8.*No space.*rounds \[4\] are whole") as error:
        go(tmp_path)
    assert error.value.errno == errno.ENOSPC and times == [4, 8]
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["4"]  # nothing half written
    monkeypatch.undo()
    same(go(tmp_path), whole)


LIMITED = """
import resource, sys
import numpy as np
from jaxfl.runs.checkpoint import Checkpoints
tree = lambda size: {"x": np.random.default_rng(0).normal(size=size)}
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, tree(1000))
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
    checkpoints.save(2, tree(10**5))
    try:
        checkpoints.wait()
    except OSError as error:
        print(error)
    assert checkpoints.saved == [1], checkpoints
    np.testing.assert_array_equal(checkpoints.restore()[1]["x"], tree(1000)["x"])
    checkpoints.save(3, tree(1000))
assert checkpoints.saved == [1, 3], checkpoints
"""


def test_files_that_may_not_grow(tmp_path):
    """RLIMIT_FSIZE: a real failure in the writer's threads, and nothing but the error is said."""
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 cannot be written: File too large; make room" in done.stdout
    assert not done.stderr


def test_no_place_to_write(tmp_path):
    """A file in the way, a folder that may not be written to."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written: .*choose another folder"):
        go(tmp_path / "file" / "run")
    with pytest.raises(OSError, match="cannot be written: .*choose another folder"):
        jaxfl.save(tmp_path / "file" / "model", {"x": X0})
    if os.geteuid() == 0:
        return  # may write everywhere
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OSError, match="closed.* cannot be written: Permission denied"):
        go(tmp_path / "closed")


def test_metrics_of_a_resumed_run(tmp_path):
    """The file is that of an uninterrupted run, also where a line was cut off."""
    go(writers=[JSONLines(tmp_path / "whole.jsonl")])
    lines = tmp_path / "run.jsonl"
    for at in (4, 12):
        with pytest.raises(ZeroDivisionError):
            go(tmp_path / "c", callbacks=[stop(at)], writers=[JSONLines(lines)])
        with open(lines, "a") as file:
            file.write('{"round": 1')
    go(tmp_path / "c", writers=[JSONLines(lines)])
    assert lines.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(lines.read_text().splitlines()) == 6


def test_killed(tmp_path):
    """SIGKILL at three moments; benchmarks/kills.py has thirty."""
    found = script("kills").kill("scaffold", tmp_path, kills=3, rounds=40, within=0.2, seed=0)
    assert found["kills"] == 3 and found["equal"], found
    assert found["moments"][0]["saved"], "killed before anything was saved"
    assert len(found["compared"]) > 10 and "metrics.jsonl" in found["compared"]
