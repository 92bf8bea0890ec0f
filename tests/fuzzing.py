"""Mutants of right files, and what may come of them: a valid result, or an error that says what.

`judge(case, raw)` is the rule for one mutant; `mutants(case)` is a hypothesis strategy of them.
"""

import bz2
import contextlib
import gzip
import io
import signal
import tarfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

SECONDS, LARGEST = 10, 1 << 28  # of one mutant: time, and bytes of memory at once
WORDS = [
    *(b"", b"0", b"-1", b"nan", b"NaN", b"inf", b"-inf", b"1e999", b"1e-400", b"-0", b"+1", b"1_0"),
    *(b"0x10", b"9" * 30, b"9" * 5000, b"1.5", b"true", b"null", b"Infinity", b"\xef\xbb\xbf"),
    *(b"\0", b"\xff", b"\xc3\xa9", b"\xd9\xa3", b'"', b"'", b'""', b"\n", b"\r\n", b"\r", b","),
    *(b"\t", b":", b"::", b" ", b"#", b"[" * 5000, b"{" * 5000, b"]", b"{}", b"[]", b"\\u0000"),
    *(b"=", b"=[", b'"""', b"1979-05-27", b"\x7f\xff\xff\xff", b"\xff" * 4, b"\xff" * 8, b"\0" * 8),
]


@dataclass
class Case:
    """One right file, what reads it, and what is known of the result."""

    name: str
    path: Path
    load: Callable[[Path], Any]
    checked: bool = False  # a checksum: what is accepted is as it was
    local: Callable[[bytes], int] | None = None  # from this byte on, one example per byte changes
    inner: bool = True  # also mutate what is compressed, and compress it again
    right: Any = field(init=False)
    raw: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.raw, self.right = self.path.read_bytes(), self.load(self.path)


# Mutations -----------------------------------------------------------------------------------


@st.composite
def spoiled(draw: Any, raw: bytes) -> bytes:
    """The bytes with one to four of them, or whole stretches, changed, lost, moved or repeated."""
    out = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        end = max(len(out) - 1, 0)
        place = draw(st.integers(0, min(end, 400)) | st.integers(0, end))
        size = draw(st.integers(1, 16) | st.integers(1, max(1, len(out) // 2)))
        what = draw(st.sampled_from("set bit word drop repeat move zero cut".split()))
        if what == "set":
            out[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif what == "bit" and out:
            out[place] ^= 1 << draw(st.integers(0, 7))
        elif what == "word":
            word = draw(st.sampled_from(WORDS))
            out[place : place + draw(st.sampled_from([0, 1, len(word)]))] = word
        elif what == "drop":
            del out[place : place + size]
        elif what == "repeat":
            out[place:place] = out[place : place + size]
        elif what == "move":
            piece = out[place : place + size]
            del out[place : place + size]
            place = draw(st.integers(0, len(out)))
            out[place:place] = piece
        elif what == "zero":
            out[place : place + size] = bytes(len(out[place : place + size]))
        else:
            del out[place:]
    return bytes(out)


def _members(raw: bytes) -> tuple[list[tuple[str, bytes]], Callable[[list], bytes]] | None:
    """What a container holds, and how to close it again."""
    if raw.startswith(b"\x1f\x8b") and gzip.decompress(raw)[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            members = [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]

        def close(members: list) -> bytes:
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
                for name, content in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
            return out.getvalue()

        return members, close
    if raw.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            kind = archive.infolist()[0].compress_type
            members = [(name, archive.read(name)) for name in archive.namelist()]

        def zipped(members: list) -> bytes:
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", kind) as archive, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # two members of one name
                for name, content in members:
                    archive.writestr(name, content)
            return out.getvalue()

        return members, zipped
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2)):
        if raw.startswith(magic):
            return [("", module.decompress(raw))], lambda m, pack=module.compress: pack(m[0][1])
    return None


@st.composite
def mutants(draw: Any, case: Case) -> tuple[bytes, bool]:
    """A mutant, and whether it was changed inside of its compression, where no checksum helps."""
    opened = _members(case.raw) if case.inner else None
    if opened is None or draw(st.integers(0, 2)) == 0:
        return draw(spoiled(case.raw)), False
    members, close = opened
    i = draw(st.integers(0, len(members) - 1))
    what = draw(st.sampled_from(["spoil"] * 6 + ["lose", "twice", "rename"]))
    name, content = members[i]
    if what == "spoil":
        members[i] = name, draw(spoiled(content))
    elif what == "lose" and len(members) > 1:
        del members[i]
    elif what == "twice":
        members.append(members[i])
    else:
        members[i] = members[draw(st.integers(0, len(members) - 1))][0] or name, content
    return close(members), True


# The rule ------------------------------------------------------------------------------------


@contextlib.contextmanager
def limits(seconds: float = SECONDS, largest: int = LARGEST) -> Iterator[None]:
    """Raises for what takes too long, takes too much memory, or warns."""

    def late(*_: Any) -> None:
        raise TimeoutError

    def hang(*_: Any) -> None:
        signal.signal(signal.SIGALRM, late)
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    tracemalloc.start(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak <= largest, f"{peak / 2**20:.0f} MiB at once"
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Hang(BaseException):
    """What no reader catches."""


def judge(case: Case, raw: bytes, inside: bool = False) -> str:
    """ "refused" or "read": what became of a mutant; AssertionError where that was not right."""
    case.path.write_bytes(raw)
    with limits():
        try:
            found = case.load(case.path)
        except (ValueError, OSError) as error:
            said = str(error)
            assert str(case.path.parent) in said or case.path.name in said, f"no name in {said!r}"
            assert len(said) < 3000, f"{len(said)} letters"
            assert type(error).__module__.startswith("jaxfl") or isinstance(error, OSError), said
            return "refused"
        valid(found)
    if case.checked and not inside:
        same(found, case.right)
    elif case.local is not None and len(raw) == len(case.raw):
        near(case, raw, found)
    return "read"


def valid(d: Any) -> None:
    """A data set whose parts agree: lengths, finite numbers, labels in range, partitions."""
    for part in (d.train, d.valid, d.test):
        assert len(part["x"]) == len(part["y"])
        assert np.isfinite(part["x"]).all() and np.isfinite(part["y"]).all()
        if d.classes is not None and part["y"].ndim == 1:
            assert part["y"].min(initial=0) >= 0 and part["y"].max(initial=0) < d.classes
    assert len(d.train["y"]) and d.train["x"].shape[1:] == d.test["x"].shape[1:]
    for name, partition in d.partitions.items():
        partition.check(len(getattr(d, name)["y"]), 0)
        assert partition.n <= len(d.names)


def same(found: Any, right: Any) -> None:
    """The very data of the right file."""
    for name in ("x", "y"):
        np.testing.assert_array_equal(found.train[name], right.train[name])
    np.testing.assert_array_equal(found.names, right.names)


def near(case: Case, raw: bytes, found: Any) -> None:
    """Where only bytes of examples changed, no more examples did than bytes."""
    changed = np.flatnonzero(np.frombuffer(raw, "u1") != np.frombuffer(case.raw, "u1"))
    if not len(changed) or changed[0] < case.local(case.raw):
        return
    x, y = case.right.train["x"], found.train["x"]
    if x.shape == y.shape:
        wrong = (np.asarray(x) != y).reshape(len(x), -1).any(1).sum()
        assert wrong <= len(changed), f"{wrong} examples differ, of {len(changed)} bytes"
