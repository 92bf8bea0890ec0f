"""The folder of a sweep: whole files, one writer at a time, nothing lost."""

import contextlib
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfl.runs import folder
from jaxfl.runs.identity import Exact, agree, differences, digest, identity
from jaxfl.studies.plan import Plan
from jaxfl.studies.space import Space

if TYPE_CHECKING:
    import xarray

_SETTINGS, _OTHER = "sweep.toml", "another sweep"
_MINUTES = 5.0  # between the states of a chunk that is kept while it runs


@dataclass
class Store:
    """A folder of a sweep, held by this process."""

    path: Path
    provenance: dict[str, Any]
    made: Plan | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, space: Space, options: dict[str, Any]) -> Iterator["Store"]:
        """The folder of this very sweep, new or to go on with.

        Raises:
            ValueError: the folder of something else, or damaged.
            OSError: one that cannot be written, or that another process is writing to.
        """
        import tomli_w

        text = tomli_w.dumps(options) + space.toml()
        what = _settings(text)
        folder.own(path)
        folder.writable(path)
        with folder.locked(path):
            if folder.own(path):
                provenance = folder.about(path, "sweep")
                agree(path, _OTHER, _part(provenance["identity"]), _part(what))
            else:
                about = {"format": folder.FORMAT, "kind": "sweep", "identity": what}
                provenance = about | {"widths": [], "sessions": []}
                folder.text(path / folder.ABOUT, folder.sealed(provenance))  # first: all is ours
            if (path / _SETTINGS).exists():
                _unchanged(path / _SETTINGS, text)
            else:
                folder.text(path / _SETTINGS, text)
            (path / "chunks").mkdir(exist_ok=True)
            yield cls(path, provenance)

    @property
    def widths(self) -> list[int]:
        """The sizes of the chunks of every group, once they were chosen."""
        return self.provenance["widths"]

    def start(self, made: Plan, devices: int) -> None:
        """Notes what runs here, and that it began.

        Raises:
            ValueError: something else began here, under the same names.
        """
        self.made = made
        before, now = self.provenance["identity"], made.pieces.identity()
        now |= _part(before)
        if "data" in before:
            agree(self.path, _OTHER, before, now)
        else:
            self.provenance["identity"] = now
        own = {"data": made.pieces.data, "model": made.pieces.model}
        self.provenance["objects"] = {name: thing is not None for name, thing in own.items()}
        self.provenance["widths"] = [group.width for group in made.groups]
        session = folder.provenance() | {"devices": devices, "end": ""}
        self.provenance["sessions"].append(session)
        self._note()

    def _note(self):
        folder.text(self.path / folder.ABOUT, folder.sealed(self.provenance))

    def _file(self, i):
        return self.path / "chunks" / f"{i:06d}.npz"

    def _label(self, i):
        """What a file of a chunk must hold: which runs, of which sweep."""
        assert self.made is not None
        chunk = self.made.chunks[i]
        runs = self.made.groups[chunk.group].runs[chunk.places]
        return {"runs": runs, "settings": np.array(digest(self.provenance["identity"]))}

    def read(self, i: int) -> dict[str, np.ndarray] | None:
        """A finished chunk, None if it is not there."""
        path = self._file(i)
        if not path.exists():
            return None
        try:
            return _read(path, self._label(i))
        except ValueError as error:
            raise ValueError(
                f"{str(path)!r} is damaged: {error}; delete it, and the same call makes it again"
            ) from error

    def partial(self, i: int) -> "Partial":
        """Where an unfinished chunk is kept now and then."""
        return Partial(self.path / "chunks" / f"{i:06d}.partial.npz", self._label(i))

    def write(self, i: int, found: dict[str, np.ndarray]) -> None:
        """Keeps a finished chunk: one file, whole or not there."""
        path = self._file(i)
        try:
            arrays: Any = self._label(i) | found
            folder.atomic(path, lambda name: np.savez(name, **arrays))
        except OSError as error:
            raise _full(path, error) from error
        self.partial(i).path.unlink(missing_ok=True)

    def finish(self, ds: "xarray.Dataset") -> None:
        """Writes the whole result."""
        path = self.path / "results.nc"
        try:
            folder.netcdf(path, ds)
            self.provenance["sessions"][-1]["end"] = folder.now()
            self._note()
        except OSError as error:
            raise _full(path, error) from error


class Partial:
    """The file of an unfinished chunk.

    Orbax cannot save from two threads at a time; a file that is written whole, with the checksums
    of the zip format, does as well.

    Args:
        path: of the file.
        label: which runs it must hold, of which sweep.
    """

    def __init__(self, path: Path, label: dict[str, np.ndarray]):
        self.path, self.label, self._last = path, label, time.monotonic()

    def due(self) -> bool:
        """Whether it is time to keep what there is."""
        return time.monotonic() - self._last >= 60 * _MINUTES

    def read(self) -> dict[str, np.ndarray] | None:
        """What was kept; None if that is nothing, or damaged: then the chunk is run again."""
        try:
            return _read(self.path, self.label) if self.path.exists() else None
        except ValueError:
            return None

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes the place of what was kept before.

        Raises:
            OSError: it cannot be written.
        """
        whole: Any = self.label | arrays
        try:
            folder.atomic(self.path, lambda name: np.savez(name, **whole))
        except OSError as error:
            raise _full(self.path, error) from error
        self._last = time.monotonic()


def _read(path, label):
    """The arrays of a file with this label; ValueError if it is damaged."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except Exception as error:  # there is no list of what zip files and headers of arrays raise
        raise ValueError(str(error) or type(error).__name__) from error
    for name, wanted in label.items():
        if not np.array_equal(found.pop(name, None), wanted):
            raise ValueError(f"it is of other {name}")
    return found


def _full(path, error):
    return OSError(
        f"cannot write {str(path)!r}: {error.strerror or error}; everything before it is kept: "
        "mend that, and the same call goes on"
    )


def _settings(text):
    """The settings of a text, and where they are run."""
    return identity(settings=Exact(tomllib.loads(text)))


def _part(what):
    """What is known of a sweep before it is planned."""
    return {name: what[name] for name in ("surroundings", "settings")}


def _unchanged(path, text):
    """Raises ValueError where a file of settings does not say what it said."""
    try:
        found = differences(_settings(text), _settings(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        found = [str(error)]
    if found:
        raise ValueError(
            f"{str(path)!r} was changed: {'; '.join(found[:4])}; delete it, "
            "and the same call writes it again"
        )
