"""The works compiled for accelerators that are not here: an H100, a TPU v5e.

XLA compiles for a GPU or a TPU without one. What it makes tells whether a program fits the memory,
how many kernels a round launches, what is copied only to be carried through a loop, and how often
the host has to wait for a condition; the TPU's compiler also says how many cycles it expects. None
of it is a measurement, and nothing was computed.

Run: python benchmarks/ahead.py ["h100 B --full" ...], after
python -m pip install -e ".[cuda12,tpu]"
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# autotuning runs kernels, which asks for the device
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"

import jax
import jax.numpy as jnp
import numpy as np
import work
from common import record
from jax.experimental import topologies
from ours import MODELS, Decentralised, FedAvg, Gossip, Mixing, Run, Sweep
from outline import outline
from roofline import POLICIES

from jaxfl import models, networks, spread
from jaxfl.engine import devices as spreading

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
PLACES = {
    "h100": ("gpu", dict(topology_name="1x1x8", topology="1x1x8", target_config=H100)),
    "v5e": ("tpu", dict(topology_name="v5e:2x4", chips_per_host_bounds=(2, 4, 1))),
}
CLOCK = 0.94e9  # of a v5e
ROWS = [
    *(f"{place} {name}" for name in ("A", "C", "D", "E", "F --full") for place in PLACES),
    *(
        f"{place} B --full --precision {precision}"
        for precision in ("float32", "tf32", "bfloat16")
        for place in PLACES
    ),
    *(f"v5e B --full --precision bfloat16 --form {form}" for form in ("shifts", "serial")),
    *(f"{place} resnet --full --precision bfloat16" for place in PLACES),
    *(f"{place} ring" for place in PLACES),
]
ROUNDS = 20


class Lowered(Exception):
    """Stops a run where its program would be compiled for the CPU and start."""


def lowered(name, size, precision, sharding):
    """The program of a work for the device of the sharding."""
    with tempfile.TemporaryDirectory() as folder:
        data = dict(np.load(work.write(name, Path(folder) / "work.npz", size=size)))
    Run.precision = precision
    kinds = {"C": Gossip, "D": Mixing, "E": Decentralised, "F": Sweep}
    run = kinds.get(name, partial(FedAvg, name))(data)
    program = run.program

    def lower(*given, **static):
        place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
        strong = lambda a: place(a if hasattr(a, "dtype") else jnp.asarray(a))
        raise Lowered(program.lower(*jax.tree.map(strong, given), **static))

    run.program = lower
    try:
        run.run(ROUNDS)
    except Lowered as found:
        return found.args[0]
    raise AssertionError(f"{name} ran without its program")


def ring(devices):
    """E over several devices, in blocks of neighbours; only its program, no arrays."""
    with tempfile.TemporaryDirectory() as folder:
        run = Decentralised(dict(np.load(work.write("E", Path(folder) / "work.npz"))))
    mesh = jax.sharding.Mesh(np.array(devices), ("clients",))
    shaped = lambda sharding, tree: jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
    )
    place, spreading.place = spreading.place, lambda tree, sharding: shaped(sharding, tree)
    n = len(run.clients)
    clients, network = run.clients.spread(mesh), spread(networks.topology("ring", n), mesh)
    spreading.place = place
    alg, params, key = jax.tree.map(jnp.asarray, (run.alg, run.params, jax.random.key(0)))
    alg, params, key = shaped(jax.NamedSharding(mesh, jax.P()), (alg, params, key))
    run.network = network
    return run.program.lower(alg, clients, params, key, rounds=ROUNDS)


def one(args):
    """The outline of one row."""
    backend, options = PLACES[args.place]
    platform = {"gpu": "cuda"}.get(backend, backend)
    devices = topologies.get_topology_desc(platform=platform, **options).devices
    jax.default_backend = lambda: backend  # what programs choose by
    MODELS.update(B=models.cifar_cnn(form=args.form), resnet=models.resnet18(form=args.form))
    begin = time.perf_counter()
    if args.work == "ring":
        jax.device_count = lambda: len(devices)
        program = ring(devices)
    else:
        sharding = jax.NamedSharding(jax.sharding.Mesh(devices[:1], "x"), jax.P())
        program = lowered(args.work, "full" if args.full else "", args.precision, sharding)
    traced = time.perf_counter()
    compiled: Any = program.compile()
    seconds = {"trace": traced - begin, "compile": time.perf_counter() - traced}
    memory, text = compiled.memory_analysis(), compiled.as_text()
    moves = re.findall(r" (collective-permute|all-gather|all-reduce|all-to-all)(?:-start)?\(", text)
    return {
        "seconds": seconds,
        "bytes of arguments": memory.argument_size_in_bytes,
        "bytes of temporaries": memory.temp_size_in_bytes,
        "a round": outline(text, ROUNDS),
        "collectives": dict(Counter(moves)),
    }


def options(row):
    parser = argparse.ArgumentParser(prog="a row of ahead.py")
    parser.add_argument("place", choices=PLACES)
    parser.add_argument("work", choices=[*work.WORKS, "ring"])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--precision", choices=POLICIES, default="float32")
    parser.add_argument("--form", choices=("lax", "shifts", "serial"))
    return parser.parse_args(row.split())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--out", help="of one row, into this file and in this process")
    args = parser.parse_args()
    rows = {row: options(row) for row in args.rows}
    if args.out:
        Path(args.out).write_text(json.dumps(one(rows[args.rows[0]])))
        return
    results = {}
    for row in rows:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "row.json"
            command = [sys.executable, __file__, row, "--out", str(out)]
            done = subprocess.run(command, capture_output=True, text=True)
            if not out.exists():
                sys.exit(f"{row}: {done.stderr[-2000:]}")
            results[row] = found = json.loads(out.read_text())
        each, seconds = found["a round"], found["seconds"]["compile"]
        expected = f"{1e3 * each['cycles'] / CLOCK:9.2f} ms" if each["cycles"] else ""
        print(
            f"{row:48s} {seconds:6.1f} s {found['bytes of temporaries'] / 1e6:8.0f} MB"
            f" {each['kernels']:8.0f} kernels {each['copied bytes'] / 1e6:8.1f} MB copied"
            f" {each['waits']:4.0f} waits {expected} {found['collectives'] or ''}",
            flush=True,
        )
    record("ahead", {"rounds": ROUNDS, "cycles a second": CLOCK, "rows": results})


if __name__ == "__main__":
    main()
