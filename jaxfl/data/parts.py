"""What readers of files share: clear errors, compressed streams, parts that become a data set."""

import bz2
import contextlib
import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfl.data import text
from jaxfl.data.partition import Number, Seed
from jaxfl.data.sets import Dataset, _labels, _numeric, _owned, _sides

Share = Number | str | Path | None
MAGIC = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_CHUNK = 1 << 20


class FileError(ValueError):
    """A file that is not what it should be: its name, what was expected, what was found.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("a.txt").write_text("+1 1:x")
        >>> data.libsvm("a.txt")
        Traceback (most recent call last):
            ...
        jaxfl.data.parts.FileError: a.txt: expected label index:value ...; found '+1 1:x'
    """


class Part(NamedTuple):
    """The examples of one part, as its files have them."""

    x: np.ndarray
    y: np.ndarray
    client: np.ndarray | None = None  # ids


def bad(path: Any, expected: str, found: Any) -> FileError:
    """The error of a wrong file."""
    cut = lambda text: text if len(text) <= 500 else f"{text[:400]}...{text[-50:]}"
    return FileError(f"{path}: expected {cut(expected)}; found {cut(str(found))}")


@contextlib.contextmanager
def reading(path: Any, kind: str) -> Iterator[None]:
    """Whatever a library raises when a file is broken becomes a `FileError` about it."""
    try:
        yield
    except (FileError, FileNotFoundError, IsADirectoryError, PermissionError, ImportError):
        raise
    except Exception as error:  # there is no list of what zlib, pickle and HDF5 may raise
        raise bad(path, f"whole, readable {kind}", f"{type(error).__name__}: {error}") from error


def opened(path: str | Path) -> Any:
    """A binary stream of the file's content, decompressed if it is gzip, bzip2 or xz."""
    with open(path, "rb") as file:
        head = file.read(6)
    for magic, opener in MAGIC.items():
        if head.startswith(magic):
            return opener(path, "rb")
    return open(path, "rb")


def exactly(stream: Any, size: int, path: Any) -> np.ndarray:
    """The last `size` bytes of a stream; memory grows with what is there, not with the claim."""
    out = io.BytesIO()
    while chunk := stream.read(_CHUNK):
        out.write(chunk)
        if out.tell() > size:
            break
    if out.tell() != size:
        found = "more" if out.tell() > size else f"{out.tell()}, the file is truncated"
        raise bad(path, f"{size} bytes after the header", found)
    return np.frombuffer(out.getbuffer(), np.uint8)


def pixels(x: np.ndarray, dtype: Any) -> np.ndarray:
    """Bytes as they are if they are asked for, else their shares of 255."""
    if np.dtype(dtype) == x.dtype:
        return x
    out = x.astype(dtype)
    return np.divide(out, 255, out=out) if out.dtype.kind == "f" else out


def collect(
    path: str | Path, valid: Share, test: Share, load: Callable[[str | Path], Any]
) -> tuple[dict[str, Any], Number | None, Number | None]:
    """What `load` makes of the training file and of those that `valid` and `test` name."""
    parts, shares = {"train": load(path)}, []
    for part, share in (("valid", valid), ("test", test)):
        if isinstance(share, str | Path):
            parts[part] = load(share)
            share = None
        shares.append(share)
    return parts, shares[0], shares[1]


def known_ids(path: Any, ids: np.ndarray) -> np.ndarray:
    """Ids, or strings for labels, none of which is missing."""
    ids = np.asarray(ids)
    missing = ids == "" if ids.dtype.kind in "US" else ids != ids
    if ids.ndim != 1 or missing.any():
        found = f"none for example {missing.argmax()}" if ids.ndim == 1 else f"shape {ids.shape}"
        raise bad(path, "one id or label for every example", found)
    return ids


def assemble(
    path: str | Path,
    parts: Mapping[str, Part],
    *,
    classes: int | None = None,
    regression: bool = False,
    valid: Share = None,
    test: Share = None,
    by: str = "examples",
    seed: Seed = 0,
    dtype: Any = np.float32,
    vocabulary: tuple[str, ...] = (),
) -> Dataset:
    """A data set of the parts that files have; those that are missing are cut from `train`."""
    shares = {}
    for part, share in (("valid", valid), ("test", test)):
        if isinstance(share, str | Path):
            raise bad(path, f"{part} as a share: this format finds its files itself", repr(share))
        if part in parts and share is not None:
            raise bad(path, f"no share {part}={share}", f"a part for it; leave {part}= out")
        shares[part] = 0.0 if part in parts else 0.15 if share is None else share
    clean, ids = {}, {}
    try:
        for part, (x, y, client) in parts.items():
            if len(x) != len(y) or (client is not None and len(client) != len(x)):
                found = f"{len(x)}, {len(y)}" + ("" if client is None else f", {len(client)}")
                raise bad(path, f"as many x as y and clients in {part}", found)
            if not len(x) and part == "train":
                raise bad(path, "examples to train with", "none")
            clean[part] = _numeric(f"x ({part})", x, dtype), _numeric(f"y ({part})", y, dtype)
            if clean[part][0].shape[1:] != clean["train"][0].shape[1:]:
                shapes = clean["train"][0].shape[1:], clean[part][0].shape[1:]
                raise bad(path, f"x of shape {shapes[0]} in {part} as in train", shapes[1])
            if client is not None:
                ids[part] = known_ids(path, client)
        if regression:
            clean = {part: (x, y.astype(dtype)) for part, (x, y) in clean.items()}
        else:
            labels = {part: _labels(y, classes) for part, (_, y) in clean.items()}
            known = [k for _, k in labels.values() if k is not None]
            classes = max(known) if len(known) == len(labels) else None
            clean = {part: (x, labels[part][0]) for part, (x, _) in clean.items()}
        x, y = clean["train"]
        owner = np.unique(ids["train"], return_inverse=True)[1] if "train" in ids else None
        rng = np.random.default_rng(seed)
        which = _sides(y, owner, classes, shares["valid"], shares["test"], by, rng)
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error
    arrays = {part: {"x": x, "y": y} for part, (x, y) in clean.items()}
    if which.any() or len(parts) < 3:
        mine = ids.get("train")
        for i, part in enumerate(("train", "valid", "test")):
            if part in parts and not (part == "train" and which.any()):
                continue
            mask = which == i
            arrays[part] = {"x": x[mask], "y": y[mask]}
            if mine is not None:
                ids[part] = mine[mask]
    names, partitions = _owned(ids) if "train" in ids else (np.arange(0), {})
    return Dataset(
        Path(path).name.split(".")[0],
        arrays["train"],
        arrays["valid"],
        arrays["test"],
        classes=None if regression else classes,
        partitions=partitions,
        names=names,
        vocabulary=vocabulary,
    )


def tokens_of(
    path: Any, sentences: Sequence[Sequence[str]], given: int | Sequence[str] | Path
) -> text.Tokens:
    """The numbers of the most frequent words of the training text, or of the words given."""
    if isinstance(given, str | Path):  # lines "word count" or "word", the most frequent first
        with reading(given, "vocabulary"), opened(given) as stream:
            lines = stream.read().decode("utf-8").splitlines()
        given = [line.split()[0] for line in lines if line.strip()]
    elif isinstance(given, int):
        given = text.vocabulary(sentences, given)
        if not given:
            raise bad(path, "words in the texts to train with", "none")
    return text.Tokens(given)
