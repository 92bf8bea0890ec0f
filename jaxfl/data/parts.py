"""What readers of files share: clear errors, compressed streams, parts that become a data set."""

import bz2
import contextlib
import gzip
import io
import lzma
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfl.data import text
from jaxfl.data.partitioners import Number, Seed
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
    y: Any  # an array, or `Texts`
    client: Any = None  # ids, an array or `Texts`
    file: Any = None  # for errors


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
    path: str | Path, valid: Share, test: Share
) -> tuple[dict[str, str | Path], Number | None, Number | None]:
    """The files of the parts, with those that `valid` and `test` name, and the shares."""
    files, shares = {"train": path}, []
    for part, share in (("valid", valid), ("test", test)):
        named = isinstance(share, str | Path)
        files |= {part: share} if named else {}
        shares.append(None if named else share)
    return files, shares[0], shares[1]


# Texts and numbers -----------------------------------------------------------------------------

MISSING = (
    *("", "?", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "NULL", "Null", "null"),
    *("None", "none"),
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_POINT = re.compile(r"(?<=\d)\.0*$")
_PADDED = re.compile(r"[+-]?0\d+")


def number(text: str) -> int | float | None:
    """The number that a text is; None for words, `1_000`, digits of other scripts, inf, nan."""
    text = text.strip(" \t")
    if not _NUMBER.fullmatch(text):
        return None
    whole = len(text) < 19 and text.lstrip("+-").isdigit()
    value = int(text) if whole else float(text)
    return value if abs(value) < math.inf else None


def _label(text: str) -> int | float | None:
    """The number of a label; None for what is a name, such as 007."""
    return None if _PADDED.fullmatch(text) else number(text)


def _counted(text: str) -> int | None:
    """The integer whose text this is, character by character."""
    value = number(text)
    return value if isinstance(value, int) and str(value) == text else None


class Texts:
    """A column of texts: every different one once, where it came first, and who has which.

    Args:
        name: of the column, if it has one.
        typed: the file says that these are texts; a CSV, whose places are lines, does not.
    """

    def __init__(self, name: str = "", typed: bool = True) -> None:
        self.name, self.typed = name, typed
        self.number: dict[str, int] = {}
        self.places: list[int] = []
        self._codes: list[np.ndarray] = []

    @classmethod
    def of(cls, values: np.ndarray, name: str = "") -> "Texts":
        """A column of an array of strings.

        Raises:
            ValueError: something else is in it.
        """
        cells = [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
        wrong = next((i for i, v in enumerate(cells) if not isinstance(v, str)), None)
        if wrong is not None or values.ndim != 1:
            found = f"shape {values.shape}" if wrong is None else repr(cells[wrong])[:40]
            raise ValueError(f"texts must be a column [N] of strings; got {found}")
        column = cls(name)
        column.add(cells, range(len(cells)))
        return column

    def add(self, cells: Sequence[str], places: Sequence[int]) -> None:
        """More cells, and where each is."""
        for cell, place in zip(cells, places):
            if cell not in self.number:
                self.number[cell] = len(self.number)
                self.places.append(place)
        code = np.fromiter(map(self.number.__getitem__, cells), np.int32, len(cells))
        self._codes.append(code)

    @property
    def code(self) -> np.ndarray:
        """The text of every cell, as a number: its place in the order of appearance."""
        self._codes = [np.concatenate([np.zeros(0, np.int32), *self._codes])]
        return self._codes[0]

    def __len__(self) -> int:
        return len(self.code)

    def where(self, name: str) -> str:
        """A text, and where it came first."""
        row = f"{'example' if self.typed else 'line'} {self.places[self.number[name]]}"
        return f"{name[:60]!r} in {row}" + (f", column {self.name!r}" if self.name else "")

    def check(self, file: Any, what: str, missing: Sequence[str]) -> None:
        """Raises for a missing one, and for what no two programs take for the same name."""
        for name in self.number:
            if name.strip() in missing:
                found = (
                    f"{self.where(name)}, which means: missing; drop it, or missing=('',) if not"
                )
                raise bad(file, f"{what} for every example", found)
            if "\0" in name or (name != name.strip() and not self.typed):
                raise bad(file, f"{what} without blanks around it", self.where(name))


def numbers(path: Any, values: Sequence[Any]) -> np.ndarray:
    """Labels or targets of JSON, where they are numbers or texts of numbers."""
    out: list[Any] = [_label(v) if isinstance(v, str) else v for v in values]
    for i, v in enumerate(out):
        if type(v) not in (int, float) or not abs(v) < 2**1023:
            raise bad(path, "numbers as labels", f"{str(values[i])[:40]!r} in example {i}")
    return np.array(out, np.float64)


# Parts follow train ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What is read, as asked for and as the training part decided it: the others follow.

    Whole numbers are labels in every format, also when they are written 1.0, unless `regression`.
    """

    dtype: Any = np.float32  # of x, where it is floats
    classes: int | None = None  # None until `decide`, or a regression
    regression: bool = False
    missing: Sequence[str] = MISSING
    columns: tuple[str, ...] = ()  # of x, in order, where they have names
    kind: str = ""  # of the numbers in the file's x: b, u, i or f
    x: tuple[tuple[int, ...], Any] = ((), None)  # shape and type of an example
    y: tuple[int, ...] = ()  # shape of a label or target
    labels: tuple[str, ...] = ()  # the names of the classes, if they have names

    def __post_init__(self) -> None:
        if isinstance(self.missing, str):
            fix = f"missing=({self.missing!r},)"
            raise ValueError(f"missing must be texts in a tuple; got {self.missing!r}: {fix}")

    def decide(self, part: Part) -> tuple["Layout", np.ndarray, np.ndarray]:
        """The layout of the training part, and its x and y."""
        x, y, classes, labels = self._x(part, "train"), part.y, self.classes, ()
        if isinstance(y, Texts):
            y.check(part.file, "a label", self.missing)
            read = number if self.regression else _label
            words = [n for n in y.number if y.typed or read(n) is None]
            if self.regression and words:
                raise bad(part.file, "numbers as targets", y.where(words[0]))
            labels = tuple(sorted(y.number)) if words else ()
            if labels and (classes or len(labels)) < len(labels):
                found = f"{len(labels)}: {', '.join(labels[:9])}"
                raise bad(part.file, f"at most {classes} different labels", found)
            if labels:
                classes = classes or len(labels)
        layout = replace(self, kind=part.x.dtype.kind, x=(x.shape[1:], x.dtype), labels=labels)
        y = layout._numbers(part)
        if y.dtype.kind == "f":  # whole in all digits, not only in those of `dtype`
            y = _numeric("y (train)", y, np.float64)
        whole = y.dtype.kind in "bui" or (y.ndim == 1 and (y == np.floor(y)).all())
        if self.regression or (classes is None and not whole):
            y, classes = layout._targets(y, "train"), None
        elif whole and max(abs(float(y.min())), abs(float(y.max()))) >= 2**31:
            raise ValueError(f"y has labels up to {y.max()}: regression=True takes them as targets")
        else:
            y, classes = _labels(y.astype(np.int64) if whole else y, classes)
        return replace(layout, classes=classes, y=y.shape[1:]), x, y

    def _targets(self, y: np.ndarray, name: str) -> np.ndarray:
        dtype = self.dtype if np.dtype(self.dtype).kind == "f" else np.float32
        return _numeric(f"y ({name})", y.astype(np.float64), dtype)

    def follow(self, part: Part, name: str) -> tuple[np.ndarray, np.ndarray]:
        """x and y of another part.

        Raises:
            FileError: something does not fit, and where it is.
        """
        file, x = part.file, self._x(part, name)
        if (x.shape[1:], x.dtype) != self.x or part.x.dtype.kind != self.kind:
            right = f"x of {self.x[1]} {list(self.x[0])} in {name} as in train"
            raise bad(file, right, f"{part.x.dtype} {list(x.shape[1:])}; save both alike")
        if isinstance(part.y, Texts):
            part.y.check(file, "a label", self.missing)
        y = self._numbers(part)
        if y.shape[1:] != self.y:
            raise bad(file, f"y of shape [N, *{self.y}] in {name} as in train", y.shape)
        if self.classes is None:
            return x, self._targets(y, name)
        wrong = (y != np.floor(y)) | (y < 0) | (y >= self.classes) if y.size else y != y
        if wrong.any():
            i = int(np.argwhere(wrong)[0][0])
            found = part.y.where(_at(part.y, i)) if isinstance(part.y, Texts) else ""
            found, more = found or f"{y[wrong].flat[0]} in example {i}", y[wrong] >= self.classes
            fix = f"; classes={y.max() + 1:.0f} allows it" if more.all() and not self.labels else ""
            raise bad(file, f"labels 0 to {self.classes - 1} in {name} as in train", found + fix)
        return x, y.astype(np.int32)

    def _x(self, part: Part, name: str) -> np.ndarray:
        x = _numeric(f"x ({name})", part.x, self.dtype)
        return x.astype(self.dtype) if x.dtype == bool else x

    def _numbers(self, part: Part) -> np.ndarray:
        """Labels or targets as numbers: names by their place among those of train."""
        y = part.y
        if not isinstance(y, Texts):
            if self.labels or y.dtype.kind not in "buif":
                raise bad(part.file, "labels that are texts, as in train", y.dtype)
            return y
        read = {n: i for i, n in enumerate(self.labels)}.get if self.labels else number
        if not self.labels and not self.regression:
            read = _label
        values = {n: None if y.typed and not self.labels else read(n) for n in y.number}
        for name, value in values.items():
            if value is None:
                known = f"one of {', '.join(self.labels)[:200]}" if self.labels else "numbers"
                raise bad(part.file, f"labels as in train, {known}", y.where(name))
        return np.array([*values.values()])[y.code]


def _at(column: Texts, i: int) -> str:
    return [*column.number][column.code[i]]


def owners(parts: Mapping[str, Part], missing: Sequence[str]) -> tuple[np.ndarray, dict]:
    """The names of all clients, sorted, and by part the client of every example, as a number.

    The ids of a CSV are integers if all of them, in all parts, are written as integers are;
    otherwise they are names. Other files say which they are, and must agree.
    """
    ids, typed = {}, {}
    for part, (_, _, client, file) in parts.items():
        if client is None:
            continue
        kind = ""
        if isinstance(client, Texts):
            client.check(file, "a client id", missing)
            ids[part] = [*client.number], client.code
            kind = "texts" if client.typed else kind
        else:
            if client.ndim != 1 or (lost := client != client).any():
                found = f"none for example {lost.argmax()}" if client.ndim == 1 else client.shape
                raise bad(file, "a client id for every example", found)
            distinct, code = np.unique(client, return_inverse=True)
            ids[part] = distinct.tolist(), code
            kind = {"f": "floats", "b": "truth values"}.get(client.dtype.kind, "integers")
        typed |= {kind: part} if kind else {}
    if len(typed) > 1:
        (a, there), (b, here) = [*typed.items()][:2]
        raise bad(parts[here].file, f"ids that are {a} in {here}, as in {there}", b)
    loose = {k: p for k, p in parts.items() if isinstance(p.client, Texts) and not p.client.typed}
    if loose and "texts" not in typed:
        read = {n: _counted(n) for p in loose.values() for n in p.client.number}
        words = [n for n, value in read.items() if value is None or "floats" in typed]
        if words and typed:
            part = next(p for p in loose.values() if words[0] in p.client.number)
            raise bad(part.file, f"ids that are {next(iter(typed))}", part.client.where(words[0]))
        for part in loose if not words else ():
            ids[part] = [read[n] for n in ids[part][0]], ids[part][1]
    names = sorted({name for distinct, _ in ids.values() for name in distinct})
    place = {name: i for i, name in enumerate(names)}
    whole: dict[str, str] = {}  # 1.0 and 1 are hardly two clients
    for name in names if names and isinstance(names[0], str) else ():
        other = whole.setdefault(_POINT.sub("", name) if _POINT.search(name) else name, name)
        if other != name:
            file = next(p.file for p in parts.values() if name in getattr(p.client, "number", ()))
            raise bad(file, "ids that are written alike in all parts", f"{other!r} and {name!r}")
    found = {}
    for part, (distinct, code) in ids.items():
        found[part] = np.array([place[n] for n in distinct], np.int64)[code]
    return np.array(names), found


def assemble(
    path: str | Path,
    parts: Mapping[str, Part],
    layout: Layout,
    *,
    valid: Share = None,
    test: Share = None,
    by: str = "examples",
    seed: Seed = 0,
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
    clean, file = {}, path
    try:
        parts = {k: _told(p._replace(file=p.file or path)) for k, p in parts.items()}
        for part, (x, y, client, file) in parts.items():
            if len(x) != len(y) or (client is not None and len(client) != len(x)):
                found = f"{len(x)}, {len(y)}" + ("" if client is None else f", {len(client)}")
                raise bad(file, f"as many x as y and clients in {part}", found)
            if client is not None and parts["train"].client is None:
                raise bad(file, f"clients in train, as in {part}", "none")
        if not len(parts["train"].x):
            raise bad(path, "examples to train with", "none")
        file = parts["train"].file
        layout, x, y = layout.decide(parts["train"])
        clean["train"] = x, y
        for part in [name for name in parts if name != "train"]:
            file = parts[part].file
            clean[part] = layout.follow(parts[part], part)
        file = path
        names, ids = owners(parts, layout.missing)
        owner = np.unique(ids["train"], return_inverse=True)[1] if ids else None
        rng = np.random.default_rng(seed)
        which = _sides(y, owner, layout.classes, shares["valid"], shares["test"], by, rng)
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{file}: {error}") from error
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
    order, partitions = _owned(ids) if ids else (np.arange(0), {})
    return Dataset(
        Path(path).name.split(".")[0],
        arrays["train"],
        arrays["valid"],
        arrays["test"],
        classes=layout.classes,
        partitions=partitions,
        names=names[order] if ids else np.arange(0),
        vocabulary=vocabulary,
    )


def _told(part: Part) -> Part:
    """A part whose strings are `Texts`."""
    y, client = (
        Texts.of(v) if isinstance(v, np.ndarray) and v.dtype.kind in "OSU" else v
        for v in (part.y, part.client)
    )
    return part._replace(y=y, client=client)


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
