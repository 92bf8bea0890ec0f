"""Models and states on disk, and checkpoints of long runs.

A checkpoint is an orbax folder of arrays, and in it `jaxfl.json`: what they are, with a CRC-32 of
every file and of itself, because orbax does not notice every flipped bit. Nothing in it is code.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.engine import marks
from jaxfl.runs.folder import locked, sealed, text, unsealed
from jaxfl.runs.identity import agree, identity

FORMAT = 2  # in 1, what a run is left functions out
_ABOUT, _TEMPORARY, _DELETED = "jaxfl.json", ".orbax-checkpoint-tmp", ".deleted"


class Damaged(ValueError):
    """A checkpoint that is truncated, changed, foreign or of another format."""


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and saved what it had."""


def save(path: str | Path, tree: Any) -> None:
    """Writes a model, per-client models or a whole state as a checkpoint folder.

    Args:
        path: a folder that does not exist yet.
        tree: a pytree of arrays.

    Raises:
        ValueError: the folder exists, or a leaf is not an array of numbers.
        OSError: it cannot be written.

    Example:
        >>> jaxfl.save("model", {"w": np.ones(3)})
        >>> jaxfl.load("model")["w"].tolist()
        [1.0, 1.0, 1.0]
    """
    path = Path(path).absolute()
    if path.exists():
        raise ValueError(f"path {path} exists already; choose a new name or delete it first")
    arrays, about = _pack(tree, {})
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _DISK.submit(_write, path, arrays, about).result()


def load(path: str | Path, like: Any = None) -> Any:
    """Reads what `save` wrote.

    Args:
        path: the folder.
        like: a pytree of the same structure (a state, or `model.init(key)`) whose types, shapes
            and devices the result takes; without it, nested dicts and lists of NumPy arrays.

    Raises:
        ValueError: no such checkpoint, a damaged one, or one that does not fit `like`.

    Example:
        >>> params = {"w": np.ones(3, np.float32)}
        >>> jaxfl.save("model", params)
        >>> jaxfl.load("model", like=params)["w"].dtype
        dtype('float32')
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise ValueError(
            f"path {path} is not a checkpoint folder; `jaxfl.save(path, tree)` makes one"
        )
    return _unpack(path, *_read(path), like)


def to_numpy(tree: Any) -> Any:
    """The same pytree with NumPy arrays, for use without JAX."""
    return jax.tree.map(np.asarray, tree)


class Checkpoints:
    """A folder with the last few states of a long run, written while the run goes on.

    `jaxfl.run(..., checkpoint="folder")` does all of this by itself; give it a `Checkpoints` to say
    how often. One process at a time writes to a folder.

    Args:
        folder: where; made when the first checkpoint is saved.
        rounds: save when so many rounds have passed since the last time; 0: do not count them.
        minutes: save when so much time has passed; with both 0, after every chunk of rounds.
        keep: how many to keep, >= 1.
        fallback: where the newest is damaged, warn and use the one before it.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> with jaxfl.Checkpoints("run", keep=2) as checkpoints:
        ...     checkpoints.save(10, {"x": np.ones(3)})
        ...     checkpoints.save(20, {"x": np.zeros(3)})
        >>> t, tree = jaxfl.Checkpoints("run").restore()
        >>> t, tree["x"].tolist()
        (20, [0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        rounds: int = 0,
        minutes: float = 0.0,
        keep: int = 2,
        fallback: bool = False,
    ):
        for name, value, low in (("rounds", rounds, 0), ("minutes", minutes, 0), ("keep", keep, 1)):
            if not value >= low:
                raise ValueError(
                    f"{name} must be >= {low}, got {value}; for example "
                    "`Checkpoints(folder, rounds=100, keep=2)`"
                )
        self.folder = Path(folder).absolute()
        self.rounds, self.minutes, self.keep, self.fallback = rounds, minutes, keep, fallback
        self._lock: contextlib.ExitStack | None = None
        self._pending: tuple[int, Future] | None = None
        self._last: tuple[int, float] = (0, time.monotonic())  # round and time of the last save

    def __repr__(self) -> str:
        return f"Checkpoints({str(self.folder)!r}, saved={self.saved})"

    def __enter__(self) -> "Checkpoints":
        self._open()
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @property
    def saved(self) -> list[int]:
        """The rounds that have been saved whole, ascending."""
        if not self.folder.is_dir():
            return []
        names = (p.name for p in self.folder.iterdir() if p.is_dir())
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    @property
    def latest(self) -> int | None:
        """The newest of them."""
        return max(self.saved, default=None)

    def due(self, t: int) -> bool:
        """Whether it is time to save round t."""
        last, when = self._last
        if not (self.rounds or self.minutes):
            return True
        counted = bool(self.rounds) and t - last >= self.rounds
        return counted or (bool(self.minutes) and time.monotonic() - when >= 60 * self.minutes)

    def save(self, t: int, tree: Any, about: Any = None) -> None:
        """Copies a tree to the host and writes it in the background.

        Args:
            t: number of the next round.
            tree: a pytree of JAX arrays (wherever they are), random keys, NumPy arrays, numbers.
            about: JSON that says of what (`jaxfl.identity`); `restore` can compare it.

        Raises:
            ValueError: a leaf is not an array of numbers.
            OSError: this one, or the one before, cannot be written; those before it stay.
        """
        arrays, meta = _pack(tree, {"t": int(t), "about": about})
        self.wait()
        self._open()
        self._pending = t, _DISK.submit(_write, self.folder / str(int(t)), arrays, meta)
        self._last = (t, time.monotonic())

    def restore(self, like: Any = None, t: int | None = None, about: Any = None) -> tuple[int, Any]:
        """Reads a checkpoint.

        Args:
            like: a pytree of the same structure, whose types, shapes and devices the result takes,
                on however many devices it was saved; NumPy arrays and `jax.ShapeDtypeStruct`
                without a sharding become NumPy arrays. A function `like(t)` where it depends on
                the round. Without it, nested dicts and lists of NumPy arrays.
            t: which; the newest by default.
            about: what `save` must have been given.

        Returns:
            The number of the next round, and the tree.

        Raises:
            ValueError: none saved, a damaged one (see `fallback`), one of another run, or one that
                does not fit `like`.
        """
        self.wait()
        steps = [*reversed(self.saved)] if t is None else [t]
        if not steps or not (self.folder / str(steps[0])).is_dir():
            raise ValueError(
                f"folder {self.folder} holds no checkpoint{'' if t is None else f' of round {t}'}, "
                f"but those of {self.saved}; `save` one first"
            )
        for now, older in zip(steps, [*steps[1:], None]):
            try:
                meta, arrays = self._read(now)
                break
            except Damaged as error:
                if older is None:
                    raise
                if not self.fallback:
                    raise Damaged(
                        f"{error}; to use the one before it, of round {older}: "
                        f"`Checkpoints({str(self.folder)!r}, fallback=True)`"
                    ) from error
                warnings.warn(f"{error}; using the one of round {older}", stacklevel=2)
        if about is not None:
            if meta["format"] != FORMAT:
                raise ValueError(
                    f"folder {str(self.folder)!r} holds a checkpoint of format {meta['format']}, "
                    f"which does not say enough of its run to go on with it, this is {FORMAT}; "
                    "choose another folder, or finish it with the jaxfl that began it"
                )
            wanted = json.loads(json.dumps(about))
            agree(self.folder, "a checkpoint of another run", meta["about"], wanted)
        self._last = (now, time.monotonic())
        if callable(like) and jax.tree_util.all_leaves([like]):
            like = like(now)
        return now, _unpack(self.folder / str(now), meta, arrays, like)

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            OSError: it cannot be written; those before it stay.
        """
        if self._pending is None:
            return
        (t, written), self._pending = self._pending, None
        with _writing(self.folder / str(t), self):
            written.result()
            steps = self.saved  # later ones belong to a run that was gone back behind
            now = [s for s in steps if s <= t]
            for s in [*now[: -self.keep], *steps[len(now) :]]:
                _remove(self.folder / str(s))

    def close(self) -> None:
        """Waits, and lets other processes write to the folder."""
        try:
            self.wait()
        finally:
            if self._lock is not None:
                self._lock.close()
            self._lock = None

    def _read(self, t):
        meta, arrays = _read(path := self.folder / str(t))
        if meta.get("t") != t:
            raise Damaged(_DAMAGED.format(path, f"it is one of round {meta.get('t')}"))
        return meta, arrays

    def _open(self):
        if self._lock is not None:
            return
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.folder))
            _clean(self.folder)
            self._lock = stack.pop_all()
        _DISK.submit(import_module, "orbax.checkpoint")  # while the first rounds are computed


class Saver:
    """What `jaxfl.run` asks of its checkpoints: to go on, to save, to say how to go on.

    Args:
        checkpoint: a folder, or `Checkpoints`.
        last: the round after the last one.
        host: whether clients or their state are on the host.
        alg, ..., schedule: what the run is given.
    """

    def __init__(self, checkpoint: Any, last: int, host: bool, *given: Any):
        if not isinstance(checkpoint, str | Path | Checkpoints):
            raise ValueError(
                f"checkpoint must be a folder or Checkpoints, got {checkpoint!r}; for example "
                '`run(..., checkpoint="folder")`'
            )
        if jax.process_count() > 1:
            raise ValueError(
                f"checkpoint must be None in a run of {jax.process_count()} processes, of which "
                "each holds a part of the state; use one process, also of many devices"
            )
        self.own = isinstance(checkpoint, str | Path)
        self.checkpoints = (
            checkpoint if isinstance(checkpoint, Checkpoints) else Checkpoints(checkpoint)
        )
        self.last, self.host, self.given = last, host, given
        names = ("algorithm", "clients", "network", "params", "key", "start", "state", "every")
        names = (*names, "evaluate", "schedule")
        self.about = identity(**dict(zip(names, given, strict=True)))
        self.most, self.due = self.checkpoints.rounds, self.checkpoints.due

    def __enter__(self):
        self.checkpoints.__enter__()
        return self

    def __exit__(self, *error):
        self.checkpoints.close() if self.own else self.checkpoints.wait()

    def resume(self):
        """The next round, the state, and the history and evaluations so far, in a list."""
        start, state = self.given[5:7]
        if self.checkpoints.latest is None:
            return start, state, []
        t, tree = self.checkpoints.restore(self._like(), about=self.about)
        if t > self.last:
            raise ValueError(
                f"folder {self.checkpoints.folder} holds round {t}, beyond the {self.last} asked "
                f"for; ask for rounds={t - start} or more, or choose another folder"
            )
        state = tree["state"]
        if self.host:
            state = jax.tree.map(lambda a, each: a if each else jnp.array(a), state, self.stacked)
        return t, state, [(tree["history"], tree["evaluations"])]

    def _like(self):
        from jaxfl.engine.simulate import _rounds, begin

        alg, clients, network, params, key, start, state, every, evaluate, schedule = self.given
        if self.host:
            from jaxfl.runs.stream import layout

            marked = layout(alg, clients, params, key)
            like, self.stacked = marks.plain(marked), marks.which(marked)
        else:
            marked = begin(alg, clients, params, key, state)
            like = marks.plain(marked)
        here, some = dataclasses.replace(clients, host=False), every or 1
        rounds = functools.partial(_rounds, rounds=some, every=some)
        first = jax.ShapeDtypeStruct((), jnp.int32)
        end = jax.eval_shape(rounds, alg, here, network, key, first, marked, evaluate, schedule)

        def rows(tree, size):
            one = lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype)
            return jax.tree.map(one, tree)

        return lambda t: {
            "state": like,
            "history": rows(end.history, t - start),
            "evaluations": rows(end.evaluations, (t - start) // some),
        }

    def save(self, t, state, history, evaluations, stop):
        """Saves; with `stop`, ends the run."""
        tree = {"state": state, "history": history, "evaluations": evaluations}
        self.checkpoints.save(t, tree, self.about)
        if stop:
            self.checkpoints.wait()
            raise Interrupted(
                f"stopped after round {t} of {self.last}, all saved in {self.checkpoints.folder}; "
                "the same call goes on from there"
            )


@contextlib.contextmanager
def graceful(say: Callable[[str], Any] | None = None) -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a question: yields a function that tells whether to stop.

    A second one stops at once. Outside the main thread, where signals do not arrive, nothing
    changes.

    Args:
        say: what tells that it was heard; by default a line on stderr.
    """
    say = say or (lambda words: os.write(2, f"\n{words}\n".encode()))
    asked: list[int] = []

    def handler(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("stopping after this chunk of rounds; once more to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for s, old in before.items():
            signal.signal(s, signal.SIG_DFL if old is None else old)


_DAMAGED = "checkpoint {} cannot be read: {}"


# One thread for all: orbax has state per process, and mixes up folders saved at the same time.
_DISK = ThreadPoolExecutor(1, "checkpoints")


@contextlib.contextmanager
def _orbax(meta):
    """A checkpointer that writes `meta` and the checksums of its files before it commits them."""
    import orbax.checkpoint as ocp

    handler = ocp.CompositeCheckpointHandler(arrays=ocp.PyTreeCheckpointHandler())
    finish = handler.finalize

    def finalize(directory):
        finish(directory)
        _seal(Path(directory), meta)

    handler.finalize = finalize  # orbax knows the arguments of this class, of no subclass
    log = logging.getLogger("absl")
    log.addFilter(_quiet)
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            yield checkpointer, ocp
    finally:
        log.removeFilter(_quiet)


def _write(path, arrays, meta):
    """Writes a checkpoint in the place of what has its name."""
    if path.exists():
        _remove(path)
    with _orbax(meta) as (checkpointer, ocp):
        checkpointer.save(path, ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays)))


def _arrays(path, names):
    with _orbax({}) as (checkpointer, ocp):
        how = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
        args = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=how))
        return checkpointer.restore(path, args).arrays


def _quiet(record):
    """What orbax raises it also logs, in hundreds of lines."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _seal(path, meta):
    """Writes what is in a folder, and the checksums of its files."""
    files = sorted(p for p in (path / "arrays").rglob("*") if p.is_file())
    sums = {p.relative_to(path).as_posix(): _crc(p) for p in files}
    text(path / _ABOUT, sealed({"format": FORMAT, **meta, "files": sums}))


def _crc(path):
    """The checksum of a file."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


@contextlib.contextmanager
def _writing(path, checkpoints=None):
    """What orbax and the system raise, as one OSError; what was left half done is removed."""
    try:
        yield
    except Exception as error:  # orbax raises many kinds
        code = getattr(error, "errno", None) or _code(error)
        kept = checkpoints.saved if checkpoints else []
        said = f"checkpoint {path} cannot be written: {os.strerror(code) if code else error}; "
        said += "make room, or choose another folder"
        if kept:
            said += f"; those of rounds {kept} are whole, and the same call goes on from there"
        with contextlib.suppress(OSError):
            _clean(path.parent, f"{path.name}.")
        raise (OSError(code, said) if code else OSError(said)) from error


def _code(error):
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else 0


def _clean(folder, name=""):
    """What a killed process, or a full disk, left half done."""
    for path in folder.iterdir():
        left = _TEMPORARY in path.name or path.name.endswith(_DELETED)
        if left and path.name.startswith(name):
            shutil.rmtree(path, ignore_errors=True)


def _remove(path):
    """Renamed first: what has the name of a checkpoint is never half deleted."""
    gone = path.with_name(path.name + _DELETED)
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _host(a):
    """A NumPy copy (the original may be donated or overwritten), and the kind of a random key."""
    key = ""
    if isinstance(a, jax.Array):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, key = jax.random.key_data(a), str(jax.random.key_impl(a))
    a = np.array(a, order="C")
    return np.asarray(a, a.dtype.newbyteorder("=")), key


def _entry(k):
    """A step of a path: positions are ints, names strings."""
    position = getattr(k, "idx", None)
    if isinstance(k, jax.tree_util.FlattenedIndexKey):
        position = k.key
    return position if position is not None else str(getattr(k, "name", getattr(k, "key", k)))


def _name(path):
    return ".".join(str(_entry(k)) for k in path if str(_entry(k))) or "the array"


def _pack(tree, meta):
    """What orbax saves: leaves by number, and their description."""
    arrays, leaves = {}, []
    for path, leaf in jax.tree.leaves_with_path(tree):
        a, key = _host(leaf)
        if a.dtype.kind not in "biufcV" or a.dtype.names or a.dtype.itemsize == 0:
            raise ValueError(
                f"{_name(path)} must be an array of numbers, got {leaf!r}; keep other things "
                "outside of what is saved"
            )
        if a.size:  # orbax saves no empty ones
            arrays[str(len(leaves))] = a
        path = [_entry(k) for k in path]
        leaves.append({"path": path, "shape": a.shape, "dtype": a.dtype.name, "key": key})
    return arrays or {"none": np.zeros(1)}, {**meta, "leaves": leaves}


def _read(path):
    """Description and arrays of a checkpoint, after a look at the checksums of its files."""
    damaged = lambda why: Damaged(_DAMAGED.format(path, why))
    try:
        meta = unsealed(path / _ABOUT)
    except ValueError as error:
        raise damaged(f"{error}; delete the folder, or name another one") from error
    if (form := meta.get("format")) not in (1, FORMAT):
        raise damaged(
            f"it has format {form}, this jaxfl reads {FORMAT}; use the jaxfl that wrote it"
        )
    for name, crc in meta["files"].items():
        if not (path / name).is_file() or _crc(path / name) != crc:
            raise damaged(f"its file {name} is not what was written; delete the folder")
    leaves = meta["leaves"]
    try:
        some = [str(i) for i, leaf in enumerate(leaves) if 0 not in leaf["shape"]]
        found = _DISK.submit(_arrays, path, some or ["none"]).result()
    except Exception as error:  # orbax raises many kinds
        raise damaged(f"{type(error).__name__}: {error}") from error
    arrays = []
    for i, leaf in enumerate(leaves):
        shape, dtype = tuple(leaf["shape"]), jnp.dtype(leaf["dtype"])
        a = np.zeros(shape, dtype) if 0 in shape else np.asarray(found[str(i)])
        if a.shape != shape or a.dtype != dtype:
            raise damaged(f"{'.'.join(map(str, leaf['path']))} is {a.dtype}{[*a.shape]}")
        arrays.append(a)
    return meta, arrays


def _unpack(path, meta, arrays, like):
    """The arrays as a tree, where and as `like` is."""
    leaves = meta["leaves"]
    if like is None:
        return _nest([(leaf["path"], _keys(a, leaf)) for leaf, a in zip(leaves, arrays)])
    wanted, structure = jax.tree.flatten_with_path(like)
    names = [[_entry(k) for k in p] for p, _ in wanted]
    found = {json.dumps(leaf["path"]): (leaf, a) for leaf, a in zip(leaves, arrays)}
    if {json.dumps(n) for n in names} != {*found}:
        show = lambda paths: sorted(".".join(map(str, p)) for p in paths)[:8]
        raise ValueError(
            f"path {path} cannot be read as this tree: it holds {show(v['path'] for v in leaves)}, "
            f"`like` has {show(names)}; pass `like=` the tree that was saved, or no `like` to see "
            "what it holds"
        )
    out = []
    for name, (_, like) in zip(names, wanted):
        leaf, a = found[json.dumps(name)]
        a = _keys(a, leaf)
        if a.shape != np.shape(like) or not _casts(a.dtype, like):
            raise ValueError(
                f"path {path} cannot be read as this tree: {'.'.join(map(str, name))} is "
                f"{a.dtype}{[*a.shape]}, `like` has {jnp.result_type(like)}{[*np.shape(like)]}; "
                "pass `like=` the tree that was saved, or no `like` to see what it holds"
            )
        out.append(_put(a, like))
    return jax.tree.unflatten(structure, out)


def _keys(a, leaf):
    return jax.random.wrap_key_data(jnp.asarray(a), impl=leaf["key"]) if leaf["key"] else a


def _casts(dtype, like):
    want = like.dtype if hasattr(like, "dtype") else np.asarray(like).dtype
    floating = all(jnp.issubdtype(d, jnp.floating) for d in (dtype, want))
    return floating or dtype == want


def _put(a, like):
    """An array as `like` is: a number, a NumPy array, a JAX array on the same devices."""
    if isinstance(like, bool | int | float):
        return type(like)(a)
    if isinstance(a, np.ndarray):
        a = a.astype(like.dtype, copy=False)
    over = getattr(like, "sharding", None)
    if over is None:
        return a
    if isinstance(like, jax.Array) and not like.committed:
        return jnp.array(a)
    if over.is_fully_addressable or isinstance(a, jax.Array):
        return jax.device_put(a, over)
    return jax.make_array_from_callback(a.shape, over, lambda index: a[index])


def _nest(leaves):
    """Dicts and lists from paths."""
    if len(leaves) == 1 and not leaves[0][0]:
        return leaves[0][1]
    inner: dict[Any, list] = {}
    for (first, *rest), a in leaves:
        inner.setdefault(first, []).append((rest, a))
    nested = {k: _nest(v) for k, v in inner.items()}
    if nested and all(isinstance(k, int) for k in nested):
        return [nested.get(i) for i in range(max(nested) + 1)]
    return nested
