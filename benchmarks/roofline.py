"""What the machine can do at most: bytes a second of a copy, operations a second of a product.

Run: python benchmarks/roofline.py
"""

import time

import jax
import jax.numpy as jnp
from common import record

POLICIES = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}


def fastest(f, repeats=5):
    """Seconds of one call, compiled before."""
    jax.block_until_ready(f())
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(f())
        best = min(best, time.perf_counter() - begin)
    return best


def matmul_rate(precision: str = "float32", n: int = 0) -> float:
    """Floating-point operations a second of one large product.

    Args:
        precision: "float32", "tf32" (on other devices than recent GPUs the same) or "bfloat16",
            whose factors are bfloat16 and whose result too.
        n: rows and columns; 0 takes 2048 on the CPU and 8192 elsewhere.
    """
    n = n or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.float32)
    if precision == "bfloat16":
        a = a.astype(jnp.bfloat16)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=POLICIES[precision]))
    return 2 * n**3 / fastest(lambda: product(a))


def copy_bandwidth(megabytes: int = 0, copies: int = 10) -> float:
    """Bytes a second, read and written, of an array copied in a loop of a compiled program.

    Args:
        megabytes: of the array; 0 takes 256 on the CPU and 2048 elsewhere, beyond every cache.
        copies: in one call.
    """
    size = (megabytes or (256 if jax.default_backend() == "cpu" else 2048)) * 1_000_000
    x = jnp.ones(size // 4, jnp.float32)
    # the number of trips is traced: a loop that XLA could unroll, it could also fuse
    copy = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, x: x + 1, x))
    return 2 * x.nbytes * copies / fastest(lambda: copy(x, copies))


def main():
    results = {"copy, bytes a second": copy_bandwidth()}
    results |= {f"{p} product, operations a second": matmul_rate(p) for p in POLICIES}
    for name, rate in results.items():
        print(f"{name:44s} {rate / 1e9:10.1f} G")
    record("roofline", results)


if __name__ == "__main__":
    main()
