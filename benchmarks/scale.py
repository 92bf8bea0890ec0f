"""Scale: a million clients, examples on disk, state on the host.

Many clients: logistic regression, 4 examples of 64 features each, cohorts of 100; milliseconds a
round with a thousand and with a million clients, one after the other in one process, medians.
Examples on disk: dropped from the page cache before every run. `overlap` is the part of the reading
time for which the run does not wait, because the next chunk is read while the device works (here
the same cores do both, so it does not all turn into time saved). State on the host: SCAFFOLD.

Run: python benchmarks/scale.py
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import record

from jaxfl.algorithms import FedAvg, Scaffold
from jaxfl.data import iid
from jaxfl.engine.clients import Clients
from jaxfl.engine.fields import strong
from jaxfl.engine.simulate import _chunk, simulate
from jaxfl.networks import Uniform
from jaxfl.runs import stream
from jaxfl.runs.run import run

KEY = jax.random.key(0)


def logistic(params, examples, key):
    return jnp.logaddexp(0, -examples["y"] * (examples["x"] @ params["w"] + params["b"]))


def softmax(params, examples, key):
    logits = jnp.tanh(examples["x"] @ params["v"]) @ params["w"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), examples["y"][:, None], 1)[:, 0]


def timed(f):
    begin = time.perf_counter()
    return jax.block_until_ready(f()), time.perf_counter() - begin


def alternating(programs, repeats):
    """Median seconds of each, one after the other, after one run of each that compiles."""
    for f in programs.values():
        f()
    taken = {name: [] for name in programs}
    for _ in range(repeats):
        for name, f in programs.items():
            taken[name].append(timed(f)[1])
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def problem(n):
    """n clients of 4 examples of 64 features, and how long partition and `make` took."""
    rng = np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((4 * n, 64), np.float32),
        "y": np.sign(rng.standard_normal(4 * n, np.float32)),
    }
    partition, dealt = timed(lambda: iid(4 * n, n))
    clients, made = timed(lambda: Clients.make(data, partition, logistic, batch=4))
    return clients, {"partition seconds": dealt, "make seconds": made}


def many(sizes=(10**3, 10**6), rounds=200):
    params = {"w": jnp.zeros(64), "b": jnp.zeros(())}
    alg, results, programs = FedAvg(lr=0.1, steps=10), {}, {}
    megabytes = lambda tree: sum(a.nbytes for a in jax.tree.leaves(tree)) / 1e6
    for n in sizes:
        before = resident_megabytes()
        clients, results[n] = problem(n)
        world = clients, Uniform(n, 100)
        programs[n] = lambda world=world: simulate(alg, *world, params, KEY, rounds=rounds)
        programs[n]()
        rest = KEY, jnp.int32(0), alg.State(params), None, None
        program = _chunk.lower(strong(alg, params), *world, *rest, rounds=rounds, every=rounds)
        results[n] |= {
            "data megabytes": megabytes(clients.data.arrays),
            "index megabytes": megabytes(
                (clients.data.order, clients.start, clients.count, clients.id)
            ),
            "program's megabytes": program.compile().memory_analysis().temp_size_in_bytes / 1e6,
            "process grew by megabytes": resident_megabytes() - before,
        }
    for n, seconds in alternating(programs, 15).items():
        results[n]["milliseconds per round"] = seconds / rounds * 1e3
    small, large = (results[n]["milliseconds per round"] for n in sizes)
    return results | {"ratio": large / small}


def forget(folder):
    """Drops files from the page cache."""
    for path in Path(folder).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def streamed(n=2_500, each=100, features=784, rounds=60, chunk=6):
    """The same run with all examples on the device, and with them on disk.

    Sized so that reading a chunk takes about as long as computing it.
    """
    rng = np.random.default_rng(0)
    params = {
        "v": jnp.asarray(rng.standard_normal((features, 32), np.float32) / 28),
        "w": jnp.zeros((32, 10)),
    }
    ends, spent = {}, {}

    def clocked(name, method):
        def call(feed, *args):
            out, seconds = timed(lambda: method(feed, *args))
            spent.setdefault(name, []).append(seconds)
            return out

        return call

    stream.Feed._read = clocked("read", stream.Feed._read)
    stream.Feed.next = clocked("wait", stream.Feed.next)
    with tempfile.TemporaryDirectory() as folder:
        x = np.lib.format.open_memmap(
            f"{folder}/x.npy", "w+", np.float32, shape=(n * each, features)
        )
        for i in range(0, len(x), 10_000):
            x[i : i + 10_000] = rng.standard_normal((10_000, features), np.float32)
        x.flush()
        np.save(f"{folder}/y.npy", rng.integers(0, 10, n * each).astype(np.int32))
        data = {name: np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in "xy"}
        count = np.full(n, each)
        partition = (np.arange(n * each), np.cumsum(count) - count, count)

        def job(name, ahead=None):
            host = ahead is not None
            clients = Clients.make(data, partition, softmax, batch=10, host=host)
            job = FedAvg(lr=0.1, steps=2), clients, Uniform(n, 100), params, KEY
            parts = {"read": [], "wait": []}

            def go():
                forget(folder)
                spent.clear()
                stream._AHEAD = ahead
                ends[name] = run(*job, rounds=rounds, chunk=chunk).state
                for part, seconds in spent.items():
                    parts[part].append(sum(seconds[1:]))  # nothing hides the first chunk
                return ends[name]

            return go, parts

        jobs = {
            "resident": job("resident"),
            "streamed": job("streamed", 1),
            "one after the other": job("one after the other", 0),
        }
        seconds = alternating({name: go for name, (go, _) in jobs.items()}, 9)
    parts = {
        name: {part: statistics.median(s[1:]) for part, s in spent.items()}
        for name, (_, spent) in jobs.items()
        if name != "resident"
    }
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), ends["resident"], ends["streamed"])
    return {
        "seconds": seconds,
        "seconds reading and waiting for it": parts,
        "overlap": 1 - parts["streamed"]["wait"] / parts["streamed"]["read"],
        "megabytes of examples": n * each * (features + 1) * 4 / 1e6,
        "largest difference of parameters": max(map(float, jax.tree.leaves(apart))),
    }


def offloaded(n=5_000, features=784, rounds=60, chunk=6):
    """SCAFFOLD with its control variates on the device and on the host."""
    rng = np.random.default_rng(0)
    data = {
        "x": rng.standard_normal((4 * n, features), np.float32),
        "y": rng.integers(0, 10, 4 * n).astype(np.int32),
    }
    clients = Clients.make(data, iid(4 * n, n), softmax, batch=4)
    params = {
        "v": jnp.asarray(rng.standard_normal((features, 32), np.float32) / 28),
        "w": jnp.zeros((32, 10)),
    }
    ends = {}

    def job(offload):
        def go():
            alg = Scaffold(lr=0.1, steps=4)
            ends[offload] = run(
                alg,
                clients,
                Uniform(n, 100),
                params,
                KEY,
                rounds=rounds,
                chunk=chunk,
                offload=offload,
            ).state
            return ends[offload].params

        return go

    seconds = alternating({"resident": job(False), "offloaded": job(True)}, 5)
    apart = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), ends[False], ends[True])
    return {
        "seconds": seconds,
        "ratio": seconds["offloaded"] / seconds["resident"],
        "megabytes of state": sum(a.nbytes / 1e6 for a in jax.tree.leaves(ends[True].c_i)),
        "largest difference of state": max(map(float, jax.tree.leaves(apart))),
    }


def main():
    results = {}
    for part in (many, streamed, offloaded):
        results[part.__name__] = part()
        print(part.__name__, results[part.__name__], flush=True)
    record("scale", results)


if __name__ == "__main__":
    main()
