"""The folder of a sweep: whole files, one writer at a time, nothing lost."""

import contextlib
import json
import time
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfl import folder
from jaxfl.sweeps.plan import Plan
from jaxfl.sweeps.space import Space

if TYPE_CHECKING:
    import xarray

FORMAT = 1  # of the folder
_MINUTES = 5.0  # between the states of a chunk that is kept while it runs


@dataclass
class Store:
    """A folder of a sweep, held by this process."""

    path: Path
    provenance: dict[str, Any]
    made: Plan | None = None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, path: Path, space: Space, options: dict[str, Any], objects: dict[str, str]
    ) -> Iterator["Store"]:
        """The folder of this very sweep, new or to go on with."""
        import tomli_w

        text = tomli_w.dumps(options) + space.toml()
        there = [p.name for p in path.iterdir()] if path.is_dir() else []
        if there and not {"sweep.toml", ".lock"} & set(there):
            raise ValueError(
                f"{str(path)!r} holds other files, such as {min(there)!r}; choose an empty or new "
                "folder: `out='sweep-1'`"
            )
        folder.writable(path)
        with folder.locked(path):
            about = path / "provenance.json"
            if about.exists():
                provenance = _resumed(path, text, objects)
            else:
                provenance = {"format": FORMAT, "objects": objects, "widths": [], "sessions": []}
                (path / "chunks").mkdir(exist_ok=True)
                folder.text(path / "sweep.toml", text)
            yield cls(path, provenance)

    @property
    def widths(self) -> list[int]:
        """The sizes of the chunks of every group, once they were chosen."""
        return self.provenance["widths"]

    def start(self, made: Plan, devices: int) -> None:
        """Notes what runs here, and that it began."""
        self.made = made
        self.provenance["widths"] = [group.width for group in made.groups]
        session = folder.provenance() | {"devices": devices, "end": ""}
        self.provenance["sessions"].append(session)
        self._note()

    def _note(self):
        folder.text(self.path / "provenance.json", json.dumps(self.provenance, indent=2) + "\n")

    def _file(self, i):
        return self.path / "chunks" / f"{i:06d}.npz"

    def _runs(self, i):
        assert self.made is not None
        chunk = self.made.chunks[i]
        return self.made.groups[chunk.group].runs[chunk.places]

    def read(self, i: int) -> dict[str, np.ndarray] | None:
        """A finished chunk, None if it is not there."""
        path = self._file(i)
        if not path.exists():
            return None
        try:
            return _read(path, self._runs(i))
        except ValueError as error:
            raise ValueError(
                f"{str(path)!r} is damaged: {error}; delete it, and the same call makes it again"
            ) from error

    def partial(self, i: int) -> "Partial":
        """Where an unfinished chunk is kept now and then."""
        return Partial(self.path / "chunks" / f"{i:06d}.partial.npz", self._runs(i))

    def write(self, i: int, found: dict[str, np.ndarray]) -> None:
        """Keeps a finished chunk: one file, whole or not there."""
        path = self._file(i)
        try:
            arrays: Any = {"runs": self._runs(i), **found}
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
        runs: of the chunk.
    """

    def __init__(self, path: Path, runs: np.ndarray):
        self.path, self.runs, self._last = path, runs, time.monotonic()

    def due(self) -> bool:
        """Whether it is time to keep what there is."""
        return time.monotonic() - self._last >= 60 * _MINUTES

    def read(self) -> dict[str, np.ndarray] | None:
        """What was kept; None if that is nothing, or damaged: then the chunk is run again."""
        try:
            return _read(self.path, self.runs) if self.path.exists() else None
        except ValueError:
            return None

    def write(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes the place of what was kept before.

        Raises:
            OSError: it cannot be written.
        """
        whole: Any = {"runs": self.runs, **arrays}
        try:
            folder.atomic(self.path, lambda name: np.savez(name, **whole))
        except OSError as error:
            raise _full(self.path, error) from error
        self._last = time.monotonic()


def _read(path, runs):
    """The arrays of a file of these runs; ValueError if it is damaged."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error
    if not np.array_equal(found.pop("runs", None), runs):
        raise ValueError("it holds other runs")
    return found


def _full(path, error):
    return OSError(
        f"cannot write {str(path)!r}: {error.strerror or error}; everything before it is kept: "
        "mend that, and the same call goes on"
    )


def _resumed(path, text, objects):
    """The provenance of a folder, if it is that of this sweep."""
    about = folder.read_json(path / "provenance.json", "a sweep")
    other = "choose another folder, or delete this one"
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else about
        raise ValueError(f"{str(path)!r} has format {found!r}, this is {FORMAT}; {other}")
    for name, kind in (("objects", dict), ("widths", list), ("sessions", list)):
        if not isinstance(about.get(name), kind):
            raise ValueError(
                f"{str(path / 'provenance.json')!r} is damaged: its {name} are "
                f"{about.get(name)!r}; {other}"
            )
    try:
        old = tomllib.loads((path / "sweep.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the sweep in {str(path)!r}: {error}; {other}") from error
    new = tomllib.loads(text)
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            raise ValueError(
                f"{str(path)!r} holds another sweep: {name} is {old.get(name)!r} there and "
                f"{new.get(name)!r} here; {other}"
            )
    for name in objects:
        if about["objects"].get(name) != objects[name]:
            raise ValueError(f"{str(path)!r} holds a sweep of another {name}; {other}")
    return about
