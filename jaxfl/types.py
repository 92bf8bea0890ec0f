"""The words that every file shares: parameters, keys, records, and the table of letters.

| letter | means | letter | means |
|---|---|---|---|
| `x` | model | `n` | number of clients |
| `y` | local or tracked iterate | `s` | cohort size |
| `xi` | sample of examples | `k` | buffer size, or neighbours of a node |
| `g` | gradient | `e` | events |
| `w` | mixing weights | `d` | number of parameters |
| `c` | control variate | `t` | round |
| `m` | momentum | `lr`, `mu`, `rho`, `tau` | learning rate, proximal weight, radius, threshold |

Axis order everywhere: sweep, time, client, ..., parameter.
"""

import operator
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

# Any, for type checkers too: JAX rebuilds records with batched leaves, tracers and placeholders,
# and a hyperparameter may be a number or an array. Shapes are in the comments of the fields.
Params: TypeAlias = Any  # one model: a pytree of arrays [...]
Stacked: TypeAlias = Any  # one model per client: the same pytree with leaves [n, ...]
Key: TypeAlias = Any  # a JAX random key
Scalar: TypeAlias = Any  # a number, traced
if TYPE_CHECKING:
    Count: TypeAlias = int
else:
    Count = Any  # a whole number of any library; `whole` checks it, and says its name


class Info(NamedTuple):
    """What one round reports, the same record for every algorithm; `net.info(...)` makes it.

    Costs are those of each slot of the net (of a cohort, of the nodes of a graph), or one number
    that holds for every participant: the slowest one ends a round, and unequal clients do unequal
    work. Bits are floats: 100 clients x 1M parameters x 32 bits overflow int32.
    """

    loss: Scalar  # training loss, a mean over the clients that took part; NaN of nobody
    up: Scalar  # [s] or one number: bits sent
    down: Scalar  # [s] or one number: bits received
    grads: Scalar  # [s] or one number: minibatch gradients evaluated
    aux: Any = ()  # anything else, a pytree of arrays


class Work(NamedTuple):
    """What local work reports; `fit` and `clients.grads` return it."""

    loss: Scalar  # [s] training loss
    grads: Scalar  # [s] or one number: minibatch gradients evaluated


def fork(key: Key, purpose: str) -> Key:
    """A key for another purpose; the given one stays good for folding in client ids.

    One threefry call, where `split` for two purposes computes both: compiling threefry is what a
    small program spends its time on. Purposes fold in numbers from 2^31, beyond every client id.
    """
    import jax

    return jax.random.fold_in(key, zlib.crc32(purpose.encode()) | 1 << 31)


def nearest(name: str, known: list[str]) -> str:
    """The end of an error message about an unknown name: the nearest known ones, or all."""
    import difflib

    close = difflib.get_close_matches(name[:100], known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; known: {', '.join(sorted(known))}"


def shown(value: Any) -> str:
    """A value, or what another error says, as an error message quotes it: cut if it is long."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 200 else f"{text[:150]}...{text[-30:]}"


def plain(value: Any) -> Any:
    """A value with Python's numbers, words and lists in place of those of NumPy and JAX.

    Every text, file and axis is made of what comes out here, so that `np.float32(0.5)`,
    `jnp.array(0.5)` and `0.5` are one value. Records and anything else stay as they are.
    """
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        wide = np.issubdtype(array.dtype, np.longdouble)  # which `tolist` leaves as it is
        value = (array.astype(float) if wide else array).tolist()
    if type(value) in (list, tuple, range):
        return [plain(v) for v in value]
    return value


def whole(name: str, value: Any) -> int:
    """A count as an int, from a whole number of Python, NumPy or JAX.

    Raises:
        ValueError: anything else, also 2.0: nothing is cut or rounded silently.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        near = isinstance(value, float | np.floating) and np.isfinite(value)
        fix = round(float(value)) if near else 10
        raise ValueError(
            f"{name} must be a whole number, got {shown(value)}; for example `{name}={fix}`"
        ) from None


def wholes(record: Any, *names: str) -> None:
    """Makes ints of the counts of a frozen record, in its `__post_init__`."""
    for name in names:
        object.__setattr__(record, name, whole(name, getattr(record, name)))
