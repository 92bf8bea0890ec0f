"""Arrays in files, exactly as they are distributed: IDX, CIFAR, LIBSVM and `.npz`."""

import io
import math
import pickle
import pickletools
import re
import tarfile
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from jaxfl.data.partitioners import Number, Seed
from jaxfl.data.parts import (
    MISSING,
    Layout,
    Part,
    Share,
    assemble,
    bad,
    collect,
    exactly,
    opened,
    pixels,
    reading,
)
from jaxfl.data.sets import Dataset, _fitting

# IDX: MNIST, EMNIST ----------------------------------------------------------------------------

_IDX = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_LARGEST = 2**30  # bytes that a few digits of text may claim


def _idx(path: Path) -> np.ndarray:
    """The array of one file: mapped, unless it is compressed."""
    with reading(path, "IDX"), opened(path) as stream:
        head = stream.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX or not head[3]:
            raise bad(path, "an IDX header, 00 00 type dimensions", head.hex(" ") or "nothing")
        sizes = stream.read(4 * head[3])
        if len(sizes) < 4 * head[3]:
            raise bad(path, f"{head[3]} dimensions", f"{len(sizes) // 4}, the file is truncated")
        shape = tuple(np.frombuffer(sizes, ">u4").tolist())
        dtype, offset = np.dtype(_IDX[head[2]]), 4 + len(sizes)
        size = dtype.itemsize * math.prod(shape)
        if type(stream) is io.BufferedReader:
            found = path.stat().st_size - offset
            if found != size:
                raise bad(path, f"{size} bytes after the header, for {shape}", found)
            if dtype.itemsize == 1 and size:
                return np.memmap(path, dtype, "r", offset, shape)
        array = exactly(stream, size, path).view(dtype).reshape(shape)
        return array.astype(dtype.newbyteorder("="), copy=False)


def idx(
    path: str | Path,
    *,
    transpose: bool | None = None,
    classes: int | None = None,
    dtype: Any = np.float32,
    valid: Number | None = None,
    test: Number | None = None,
    seed: Seed = 0,
) -> Dataset:
    """MNIST, EMNIST and their kind: `train-images-idx3-ubyte`, also with `.gz`, and its like.

    Args:
        path: a folder with one such set, or the training images; the labels, and the images and
            labels to test (`t10k` or `test` in place of `train`), are found beside them.
        transpose: swap height and width, as EMNIST needs (default: if the name has "emnist").
        classes: number of classes (default: the largest label plus one).
        dtype: floats have the pixels in [0, 1]; np.uint8 the bytes of the file, memory-mapped if
            it is not compressed and `valid=0`.
        valid: share for validation (default: 0.15).
        test: share for the test, if the files have none (default: 0.15).
        seed: a number or a NumPy generator, for the split.

    Returns:
        x is `[N, height, width, 1]`.

    Raises:
        ValueError: a truncated or wrong file; images and labels that disagree.

    Deviations: labels of EMNIST's "letters" are 0 to 25, where the file has 1 to 26.

    Example:
        >>> from pathlib import Path
        >>> head = lambda *shape: bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        >>> _ = Path("train-images-idx3-ubyte").write_bytes(head(6, 2, 2) + bytes(24))
        >>> _ = Path("train-labels-idx1-ubyte").write_bytes(head(6) + bytes([0, 1, 2, 0, 1, 2]))
        >>> data.idx(".", valid=0).train["x"].shape
        (6, 2, 2, 1)
    """
    path = Path(path)
    images = path
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if re.search(r"train.*images.idx\d", p.name))
        if len({p.name.removesuffix(".gz") for p in found}) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise bad(path, "one set of training images, *train-images-idx3-ubyte", names)
        images = found[0]
    transpose = "emnist" in images.name if transpose is None else transpose
    parts, raw = {}, None
    for part in ("train", "test"):
        x_path = images if part == "train" else _beside(images, "train", ("t10k", "test"))
        if x_path is None:
            continue
        x, y_path = _idx(x_path), _beside(x_path, "images", ("labels",))
        if y_path is None:
            raise bad(path, f"labels beside {x_path.name}", "none")
        y = _idx(y_path)
        raw = raw or x.dtype
        if x.ndim < 2 or x.dtype != raw:
            expected = f"images of {raw}, at least two dimensions"
            raise bad(x_path, expected, f"{x.dtype} {x.shape}")
        if y.ndim != 1 or y.dtype.kind == "f":
            raise bad(y_path, "labels, integers in one dimension", f"{y.dtype} {y.shape}")
        if len(y) != len(x):
            raise bad(y_path, f"{len(x)} labels, as many as {x_path.name} has images", len(y))
        x = x.swapaxes(1, 2) if transpose and x.ndim > 2 else x
        y = y - np.uint8(1) if "letters" in y_path.name and y.min(initial=1) == 1 else y
        x = pixels(x, dtype) if x.dtype == np.uint8 else x
        parts[part] = Part(x[..., None] if x.ndim == 3 else x, y, file=x_path.parent)
    return assemble(path, parts, Layout(dtype, classes), valid=valid, test=test, seed=seed)


def _beside(path: Path, old: str, new: tuple[str, ...]) -> Path | None:
    """The file called like this one but for a word, and for its dimensions and compression."""
    for word in new:
        name = path.name.removesuffix(".gz").replace(old, word)
        if word == "labels":
            name = re.sub(r"idx\d", "idx1", name)
        for suffix in ("", ".gz"):
            other = path.with_name(name + suffix)
            if name != path.name.removesuffix(".gz") and other.exists():
                return other
    return None


# CIFAR -----------------------------------------------------------------------------------------

_CIFAR = re.compile(r"^(data_batch_\d+|test_batch|train|test)(\.bin)?$")


class _Recorded:
    """What a pickle calls an array or a dtype: its arguments and its state, nothing more."""

    def __init__(self, *args: Any) -> None:
        self.args, self.state = args, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _encode(word: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"the codec {codec!r}")
    return word.encode(codec)


class _Restricted(pickle.Unpickler):
    """Builds lists, dicts, strings and numbers, and records arrays; it can call nothing else."""

    names = {
        ("numpy.core.multiarray", "_reconstruct"): _Recorded,
        ("numpy._core.multiarray", "_reconstruct"): _Recorded,
        ("numpy", "ndarray"): _Recorded,
        ("numpy", "dtype"): _Recorded,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(f"{module}.{name}, which an archive of images needs not")
        return self.names[module, name]


def _unpickle(raw: bytes, path: Any) -> dict:
    """The dict of a batch, by a reader that runs nothing of the file's choosing."""
    with reading(path, "CIFAR pickle"):
        codes = sum(1 for _ in pickletools.genops(raw))
        for code, arg, _ in pickletools.genops(raw):
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(arg or 0) > codes:
                raise bad(path, f"at most {codes} memoised objects", f"number {arg}")
        batch = _Restricted(io.BytesIO(raw), encoding="bytes").load()
    if not isinstance(batch, dict):
        raise bad(path, "a pickled dict", type(batch).__name__)
    return {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in batch.items()}


def _pickled(raw: bytes, path: Any, labels: str) -> tuple[np.ndarray, np.ndarray, int]:
    batch = _unpickle(raw, path)
    hundred = "fine_labels" in batch
    key, classes = (
        (f"{labels}_labels", 100 if labels == "fine" else 20) if hundred else ("labels", 10)
    )
    for name in ("data", key):
        if name not in batch:
            raise bad(path, f"an entry {name!r}", [str(k)[:40] for k in batch][:9])
    data = batch["data"]
    with reading(path, "CIFAR pickle"):
        _, shape, dtype, fortran, content = data.state
        if isinstance(content, str):
            content = content.encode("latin1")
        if dtype.args[0] not in (b"u1", "u1") or fortran or not isinstance(content, bytes):
            raise bad(path, "data of bytes, row after row", dtype.args)
        if len(shape) != 2 or shape[1] != 3072 or len(content) != shape[0] * 3072:
            raise bad(path, "data of [N, 3072] bytes", f"{len(content)} bytes for {shape}")
        if not isinstance(batch[key], list) or not all(type(v) is int for v in batch[key]):
            raise bad(path, f"{key} that are a list of integers", type(batch[key]).__name__)
        y = np.array(batch[key], np.int64)
    if len(y) != shape[0]:
        raise bad(path, f"{shape[0]} {key}, one per image", len(y))
    return np.frombuffer(content, np.uint8).reshape(-1, 3, 32, 32), y, classes


def _binary(raw: np.ndarray, path: Any, hundred: bool, labels: str):
    head = 2 if hundred else 1
    if not len(raw) or len(raw) % (3072 + head):
        raise bad(path, f"records of {3072 + head} bytes, whole ones", f"{len(raw)} bytes")
    records = raw.reshape(-1, 3072 + head)
    y = records[:, 1 if hundred and labels == "fine" else 0]
    classes = 10 if not hundred else 100 if labels == "fine" else 20
    return records[:, head:].reshape(-1, 3, 32, 32), y, classes


def _members(path: Path) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Name, place and bytes of every batch in a folder, an archive, or of the one file."""
    if path.is_dir():
        for file in sorted([*path.iterdir(), *path.glob("cifar-*/*")]):
            if file.is_file() and _CIFAR.match(file.name):
                yield file.name, file, np.memmap(file, np.uint8, "r")
        return
    with opened(path) as stream:
        if not path.name.endswith((".tar", ".gz", ".tgz", ".bz2", ".xz")):
            name = path.name if _CIFAR.match(path.name) else "data_batch_1" + path.suffix
            yield name, path, np.memmap(path, np.uint8, "r")
            return
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and _CIFAR.match(name):
                    file: Any = archive.extractfile(member)
                    place = f"{path}[{member.name}]"
                    yield name, place, exactly(file, member.size, place)
        while stream.read(1 << 20):  # to the checksum at its end
            pass


def cifar(
    path: str | Path,
    *,
    labels: str = "fine",
    dtype: Any = np.float32,
    valid: Number | None = None,
    test: Number | None = None,
    seed: Seed = 0,
) -> Dataset:
    """CIFAR-10 and CIFAR-100, the binary or the Python version, as archive or unpacked.

    The Python version is a pickle, read by an unpickler that knows lists, dicts, strings, numbers
    and arrays of bytes, and refuses everything else.

    Args:
        path: `cifar-10-python.tar.gz`, its folder, or one batch.
        labels: of CIFAR-100: "fine" (100) or "coarse" (20).
        dtype: floats have the pixels in [0, 1]; np.uint8 the bytes of the file, memory-mapped if
            it is one unpacked binary file (so CIFAR-100) and `valid=0`.
        valid: share for validation (default: 0.15).
        test: share for the test, if the files have none (default: 0.15).
        seed: a number or a NumPy generator, for the split.

    Returns:
        x is `[N, 32, 32, 3]`.

    Raises:
        ValueError: a truncated or wrong file; a label out of range; a pickle with something else.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("data_batch_1.bin").write_bytes(bytes(20 * 3073))
        >>> data.cifar(".").train["x"].shape
        (14, 32, 32, 3)
    """
    path = Path(path)
    if labels not in ("fine", "coarse"):
        raise ValueError(f'labels must be "fine" or "coarse"; got {labels!r}')
    batches: dict[str, list] = {"train": [], "test": []}
    classes, members = {}, {}
    with reading(path, "CIFAR"):
        for name, place, raw in _members(path):
            members[name] = place
            if name.endswith(".bin"):
                hundred = name in ("train.bin", "test.bin")
                x, y, classes[name] = _binary(raw, place, hundred, labels)
            else:
                x, y, classes[name] = _pickled(raw.tobytes(), place, labels)
            if y.min(initial=0) < 0 or y.max(initial=0) >= classes[name]:
                raise bad(place, f"labels 0 to {classes[name] - 1}", f"{y.min()} to {y.max()}")
            x = pixels(x.transpose(0, 2, 3, 1), dtype)
            batches["test" if name.startswith("test") else "train"].append((x, y))
    if not batches["train"] or len(set(classes.values())) > 1:
        raise bad(path, "batches of CIFAR-10 or of CIFAR-100", ", ".join(members) or "none")
    join = lambda arrays: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    parts = {
        part: Part(join([x for x, _ in found]), join([y for _, y in found]))
        for part, found in batches.items()
        if found
    }
    layout = Layout(dtype, next(iter(classes.values())))
    return assemble(path, parts, layout, valid=valid, test=test, seed=seed)


# .npz ------------------------------------------------------------------------------------------


def _npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file; mapped where they are stored and not compressed."""
    arrays = {}
    with reading(path, ".npz"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise bad(path, "every array once", f"{name!r} twice")
            with archive.open(info) as member:
                version = npy.read_magic(member)
                readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
                if version not in readers:
                    raise bad(path, "arrays of numbers", f"{name!r} in version {version}")
                shape, fortran, dtype = readers[version](member)
                start, size = member.tell(), dtype.itemsize * math.prod(shape)
                if dtype.kind not in "buifSU":
                    raise bad(path, "numbers or strings", f"{name!r} of {dtype}")
                if info.file_size - start != size:
                    found = f"{info.file_size - start} for {shape}"
                    raise bad(path, f"{size} bytes of {name!r}", found)
                raw = (
                    None
                    if info.compress_type == zipfile.ZIP_STORED
                    else exactly(member, size, path)
                )
            if raw is None:
                with open(path, "rb") as file:  # the local header has a length of its own
                    file.seek(info.header_offset)
                    local = file.read(30)
                if local[:4] != b"PK\3\4":
                    raise bad(path, f"{name!r} at byte {info.header_offset}", local[:4])
                skip = 30 + int.from_bytes(local[26:28], "little")
                start += info.header_offset + skip + int.from_bytes(local[28:30], "little")
                if start + size > Path(path).stat().st_size:
                    raise bad(path, f"{size} bytes of {name!r}", "a truncated file")
                order = "F" if fortran else "C"
                arrays[name] = (
                    np.memmap(path, dtype, "r", start, shape, order)
                    if size
                    else np.zeros(shape, dtype)
                )
            else:
                array = raw.view(dtype)
                arrays[name] = array.reshape(shape, order="F" if fortran else "C")
    return arrays


def npz(
    path: str | Path,
    *,
    missing: Sequence[str] = MISSING,
    classes: int | None = None,
    regression: bool = False,
    dtype: Any = np.float32,
    valid: Number | None = None,
    test: Number | None = None,
    by: str = "examples",
    seed: Seed = 0,
) -> Dataset:
    """Arrays `x`, `y` and maybe `client`, or `x_train`, `y_train`, `x_test`, ...: `np.savez`.

    Args:
        path: the file.
        missing: texts that mean that there is none, refused in labels and ids.
        classes: number of classes (default: the largest label plus one).
        regression: y are targets, also if they are whole numbers, of integers or of floats.
        dtype: of the floats; what has it already is memory-mapped, if it is not compressed and
            `valid=0`.
        valid: share for validation, if the file has no `x_valid` (default: 0.15).
        test: share for the test, if the file has no `x_test` (default: 0.15).
        by: "examples", or "clients" to share out whole clients.
        seed: a number or a NumPy generator, for the split.

    Raises:
        ValueError: a truncated or wrong file; arrays of objects; what `from_arrays` refuses.

    Example:
        >>> np.savez("mine.npz", x=np.ones((9, 2)), y=np.arange(9) % 3, client=[*"aaabbbccc"])
        >>> mine = data.npz("mine.npz")
        >>> mine.classes, mine.partition.n, mine.names.tolist()
        (3, 3, ['a', 'b', 'c'])
    """
    arrays = _npz(path)
    parts = {}
    for name in arrays:
        word, _, part = name.partition("_")
        if word in ("x", "y", "client") and (
            part not in ("", "train", "valid", "test") or (not part and "x_train" in arrays)
        ):
            raise bad(path, "x, y and client, or with _train, _valid and _test", repr(name))
    for part in ("train", "valid", "test"):
        end = "" if part == "train" and "x_train" not in arrays else f"_{part}"
        if end and not any(name + end in arrays for name in ("x", "y", "client")):
            continue
        if "x" + end not in arrays or "y" + end not in arrays:
            raise bad(path, "arrays x and y, or x_train and y_train", ", ".join(arrays) or "none")
        x, y, client = (arrays.get(name + end) for name in ("x", "y", "client"))
        if x is None or y is None or not (x.ndim and y.ndim):
            raise bad(path, "x and y with a leading axis of examples", "a single number")
        parts[part] = Part(x, y, client)
    layout = Layout(dtype, classes, regression, missing)
    return assemble(path, parts, layout, valid=valid, test=test, by=by, seed=seed)


# LIBSVM ----------------------------------------------------------------------------------------


class _Sparse(NamedTuple):
    """Lines of label index:value ..., as they follow each other."""

    y: np.ndarray  # [N]
    line: np.ndarray  # [N] in the file
    row: np.ndarray  # [entries]
    place: np.ndarray  # [entries], from 1
    value: np.ndarray  # [entries]


def _libsvm(path: str | Path) -> _Sparse:
    y, line_of, row, place, value = (array(code) for code in "dqqqd")
    with reading(path, "LIBSVM"), opened(path) as stream:
        for at, line in enumerate(stream, 1):
            words = line.split(b"#")[0].split()
            if not words:
                continue
            last, first = 0, len(value)
            try:
                if b"_" in b"".join(words):  # int() and float() take 1_0
                    raise ValueError
                y.append(float(words[0]))
                for word in words[1:]:
                    i, _, v = word.partition(b":")
                    place.append(int(i))
                    value.append(float(v))
                    row.append(len(line_of))
                if not (math.isfinite(y[-1]) and all(map(math.isfinite, value[first:]))):
                    raise ValueError
            except (ValueError, OverflowError):
                text = line.strip()[:40].decode("latin1")
                found = f"label index:value ... of finite numbers in line {at}"
                raise bad(path, found, repr(text)) from None
            for i in place[first:]:
                if i <= last:
                    places = place[first:].tolist()[:8]
                    raise bad(path, f"indices 1, 2, ... ascending in line {at}", places)
                last = i
            line_of.append(at)
    if not y:
        raise bad(path, "lines of label index:value ...", "none")
    return _Sparse(*(np.array(a) for a in (y, line_of, row, place, value)))


def libsvm(
    path: str | Path,
    *,
    features: int | None = None,
    regression: bool = False,
    dtype: Any = np.float32,
    valid: Share = None,
    test: Share = None,
    seed: Seed = 0,
) -> Dataset:
    """LIBSVM's sparse text, `+1 3:0.5 7:1`, also compressed, as a dense matrix.

    Labels are renumbered in ascending order: -1, +1 and 1, 2 become 0, 1.

    Args:
        path: of the examples to train with.
        features: columns of x (default: the largest index of all files; a part of a set, and its
            test, may end at different ones).
        regression: the first column are targets; otherwise labels, those of the training file.
        dtype: of x.
        valid: share for validation (default: 0.15), or a file.
        test: share for the test (default: 0.15), or a file, `"a9a.t"`.
        seed: a number or a NumPy generator, for the split.

    Raises:
        ValueError: a line that is not label index:value ..., naming it; indices beyond `features`,
            or so large that the dense matrix would not fit.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("a1a").write_text('''+1 1:0.5 3:1
        ... -1 2:1
        ... +1 3:2
        ... ''')
        >>> data.libsvm("a1a", valid=0, test=0).train["x"].tolist()
        [[0.5, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]
    """
    files, valid, test = collect(path, valid, test)
    found = {part: _libsvm(file) for part, file in files.items()}
    largest = max(int(lines.place.max(initial=1)) for lines in found.values())
    d = largest if features is None else features
    if largest > d:
        raise bad(path, f"indices 1 to {d}", largest)
    dense = sum(len(lines.y) for lines in found.values()) * d * np.dtype(dtype).itemsize
    if features is None and dense > _LARGEST:
        size = f"{largest}, a dense matrix of {dense / 2**30:.1f} GiB; features={d} accepts it"
        raise bad(path, "smaller indices", size)
    kinds, parts = np.unique(found["train"].y), {}
    for part, (y, line, row, place, value) in found.items():
        whole = y == np.floor(y)
        if not regression and not whole.all():
            label = f"{y[~whole][0]} in line {line[~whole][0]}; regression=True takes targets"
            raise bad(files[part], "whole numbers as labels", label)
        if not regression and not np.isin(y, kinds).all():
            i = np.isin(y, kinds).argmin()
            known = ", ".join(f"{v:g}" for v in kinds[:9])
            raise bad(files[part], f"labels of train: {known}", f"{y[i]:g} in line {line[i]}")
        x = np.zeros((len(y), d), dtype)
        x[row, place - 1] = _fitting("values", value, dtype)
        parts[part] = Part(x, y if regression else np.searchsorted(kinds, y), file=files[part])
    layout = Layout(dtype, None if regression else max(2, len(kinds)), regression)
    return assemble(path, parts, layout, valid=valid, test=test, seed=seed)
