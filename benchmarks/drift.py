"""Mixing stays exact in float32: the drift of the network average in 1000 rounds on a ring of 6.

With TF32, the default of JAX's products on recent GPUs, weights of 1/3 no longer sum to 1. By
jaxfl's mixing in all its forms, and by a matrix product in the backend's default precision; on the
CPU that is float32 too.

Run: python benchmarks/drift.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import record

from jaxfl import networks
from jaxfl.engine import comm

N, ROUNDS, PARAMETERS = 6, 1000, 10_000


def main():
    # around 100, so that the average is far from 0
    x = 100 + jax.random.normal(jax.random.key(0), (N, PARAMETERS), jnp.float32)
    shifts = networks.topology("ring", N).w
    dense = comm.Dense(comm.to_dense(shifts))
    forms = {
        "mix, shifts": (comm.mix, shifts),
        "mix, neighbours": (comm.mix, comm.to_near(shifts)),
        "mix, dense": (comm.mix, dense),
        "product in default precision": (lambda w, x: jnp.matmul(w.w, x), dense),
    }
    drift = {}
    for name, (mix, w) in forms.items():
        step = lambda w, x, mix=mix: jax.lax.scan(lambda x, _: (mix(w, x), None), x, length=ROUNDS)
        y = np.asarray(jax.jit(step)(w, x)[0], float)
        drift[name] = float(np.abs(y.mean(0) - np.asarray(x, float).mean(0)).max())
        print(f"{name:30s} {drift[name]:.1e}")
    mixed = max(value for name, value in drift.items() if name.startswith("mix"))
    record("drift", {"rounds": ROUNDS, "nodes": N, "largest drift": drift, "by mix": mixed})
    assert mixed < 1e-2, "mixing is not exact in float32 on this device"


if __name__ == "__main__":
    main()
