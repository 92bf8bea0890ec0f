"""Folders of results: files that are whole or not there, one writer at a time, provenance."""

import contextlib
import io
import json
import os
import platform
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxfl import hdf5

FORMAT = 2  # of provenance.json; 1 left functions, files and x64 out
ABOUT = "provenance.json"
_NOWHERE = "cannot write to the output folder {folder!r}: {reason}; choose another: `out='results'`"


def possible(folder: str | Path) -> None:
    """Asks whether a folder can be made, without making it.

    Raises:
        OSError: it cannot.
    """
    folder = Path(folder).absolute()
    last = next(p for p in (folder, *folder.parents) if p.exists())
    if not last.is_dir() or not os.access(last, os.W_OK | os.X_OK):
        reason = "not writable" if last.is_dir() else "not a folder"
        raise OSError(_NOWHERE.format(folder=str(folder), reason=f"{last} is {reason}"))


def writable(folder: str | Path) -> None:
    """Makes a folder if need be.

    Raises:
        OSError: nothing can be written there.
    """
    possible(folder)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(_NOWHERE.format(folder=str(folder), reason=error.strerror)) from error


def atomic(path: str | Path, write: Callable[[str], Any]) -> None:
    """Writes beside the path, then renames: a file is whole or not there, also after a crash.

    Args:
        path: the file.
        write: `write(name)` writes a file of that name.
    """
    path = Path(path)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        if isinstance(error, OSError) and error.errno:  # of the file that was asked for
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _settle(path.parent)


def text(path: str | Path, words: str) -> None:
    """Writes a text file whole or not at all."""
    atomic(path, lambda name: Path(name).write_text(words, encoding="utf-8"))


def picture(path: str | Path, figure: Any, dpi: int = 300) -> None:
    """Writes a figure of matplotlib whole or not at all; the kind is that of the name, or PNG."""
    kind = Path(path).suffix[1:] or "png"
    atomic(path, lambda name: figure.savefig(name, dpi=dpi, format=kind))


def netcdf(path: str | Path, ds: Any) -> None:
    """Writes an `xarray.Dataset` whole or not at all, its numbers with checksums.

    HDF5 ends the process where it cannot close a file, as on a full disk: it writes to memory.
    """
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    numbers = [k for k, v in ds.variables.items() if v.ndim and v.size and v.dtype.kind in "fiu"]
    encoding = {k: {"fletcher32": True} for k in numbers}
    memory = io.BytesIO()
    with h5netcdf.File(memory, "w") as file:
        ds.dump_to_store(H5NetCDFStore(file), encoding=encoding)
    atomic(path, lambda name: Path(name).write_bytes(memory.getbuffer()))


def read_netcdf(path: str | Path) -> Any:
    """The `xarray.Dataset` of a file, in memory.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    import h5py
    import xarray as xr

    try:
        with h5py.File(path) as file:  # before h5netcdf, which prints when it meets damage
            hdf5.inside(file)
            file.visititems(lambda name, thing: dict(thing.attrs) and None)
        with xr.open_dataset(path, engine="h5netcdf") as file:
            return file.load()
    except Exception as error:  # whatever a library says of a broken file
        raise ValueError(
            f"cannot read {str(path)!r}: {str(error) or type(error).__name__}; it is not there, "
            "damaged, or not of jaxfl: run that again"
        ) from error


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _settle(folder):
    """The rename itself reaches the disk; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Holds a folder, so that one process at a time writes to it.

    The lock belongs to the process and the kernel: it is gone when the process is, however it ends.

    Raises:
        OSError: another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(Path(folder) / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OSError(
            f"another process is writing to {str(folder)!r}; wait for it, or choose another "
            "folder: `out='results-2'`"
        ) from error
    try:
        yield
    finally:
        lock.release()


def provenance() -> dict[str, Any]:
    """Where numbers come from: versions, device, commit of the source tree (if any), now."""
    import jax

    names = ("jax", "jaxlib", "flax", "optax", "numpy", "xarray")
    return {
        "versions": {n: _version(n) for n in ("jaxfl", *names)},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "commit": commit(Path(__file__).parent),
        "start": now(),
    }


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def commit(folder: str | Path) -> str:
    """The commit that a folder of sources is at, "-dirty" if it differs; "" outside of git."""
    if not (Path(folder).parent / ".git").exists():
        return ""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()


def own(folder: str | Path) -> bool:
    """Whether a folder is one of jaxfl's, to go on with; else it must be empty or new.

    Raises:
        ValueError: it holds other files.
    """
    path = Path(folder)
    there = {p.name for p in path.iterdir()} - {".lock"} if path.is_dir() else set()
    if there and ABOUT not in there:
        raise ValueError(
            f"{str(folder)!r} holds other files, such as {min(there)!r}; choose an empty or new "
            "folder: `out='results-1'`"
        )
    return bool(there)


def about(folder: str | Path, kind: str) -> dict[str, Any]:
    """What a folder says of itself.

    Args:
        folder: one of jaxfl's.
        kind: what it should hold, "sweep" or "comparison".

    Raises:
        ValueError: damaged, of another format, of another kind.
    """
    other = "choose another folder, or delete this one"
    try:
        found = unsealed(Path(folder) / ABOUT)
    except ValueError as error:
        raise ValueError(f"cannot read a {kind}: {error}; {other}") from error
    if (form := found.get("format")) != FORMAT:
        raise ValueError(f"{str(folder)!r} has format {form!r}, this is {FORMAT}; {other}")
    if found["kind"] != kind:
        raise ValueError(f"{str(folder)!r} holds a {found['kind']}, not a {kind}; {other}")
    return found


def sealed(about: dict[str, Any]) -> str:
    """The text of a JSON file that says of itself whether it was changed."""
    about = json.loads(json.dumps(about))
    return json.dumps({**about, "crc32": _crc(about)}, indent=1) + "\n"


def unsealed(path: str | Path) -> dict[str, Any]:
    """What `sealed` wrote.

    Raises:
        ValueError: a file that is missing, damaged, or was changed.
    """
    path = Path(path)
    try:
        about = json.loads(path.read_bytes())
        whole = about.get("crc32", _crc(about) if about.get("format") == 1 else "") == _crc(about)
    except Exception as error:  # whatever its bytes now say
        raise ValueError(
            f"{str(path)!r}, which jaxfl writes, is missing or not JSON ({type(error).__name__})"
        ) from error
    if not whole:
        raise ValueError(f"{str(path)!r} was changed")
    return about


def _crc(about):
    rest = {k: v for k, v in about.items() if k != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())
