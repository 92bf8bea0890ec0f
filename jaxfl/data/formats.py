"""One door for all formats: `read` recognises a file by its content."""

import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxfl.data.files import _CIFAR, cifar, idx, libsvm, npz
from jaxfl.data.parts import bad, opened, reading
from jaxfl.data.sets import Dataset, _nearest
from jaxfl.data.tables import huggingface, table
from jaxfl.data.users import leaf, tff

FORMATS: dict[str, Callable[..., Dataset]] = {
    f.__name__: f for f in (idx, cifar, leaf, tff, libsvm, table, huggingface, npz)
}
_LINE = re.compile(rb"^[-+.\deE]+(\s+\d+:\S+)*\s*(#.*)?$")


def _folder(path: Path) -> str | None:
    names = [str(p.relative_to(path)) for p in sorted(path.rglob("*")) if p.is_file()]
    for pattern, found in (
        (r"train.*images.idx\d", "idx"),
        (r"\.(parquet|arrow)$", "huggingface"),
        (r"_train\.(h5|hdf5)$", "tff"),
        (r"\.json(\.gz)?$", "leaf"),
    ):
        if any(re.search(pattern, name) for name in names):
            return found
    return "cifar" if any(_CIFAR.match(Path(name).name) for name in names) else None


def _file(path: Path, options: Any) -> str | None:
    with open(path, "rb") as file:
        raw = file.read(8)
    with reading(path, "compressed"), opened(path) as stream:
        head = stream.read(4096)
    if raw.startswith(b"\x89HDF"):
        return "tff"
    if raw.startswith(b"PK\3\4"):
        return "npz"
    if raw.startswith((b"PAR1", b"ARROW1")) or path.suffix == ".arrow":
        return "table" if "target" in options else "huggingface"
    if head[257:262] == b"ustar" or head.startswith(b"\x80"):
        return "cifar"
    if _CIFAR.match(path.name) and path.suffix == ".bin":
        return "cifar"
    if head[:2] == b"\0\0" and len(head) > 3:
        return "idx"
    if head.lstrip()[:1] == b"{":
        return "leaf"
    if tarfile.is_tarfile(path):
        return "cifar"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return "table"
    lines = head.splitlines()
    if lines and b"\0" not in head:
        short = lines[0] if len(lines) > 1 else lines[0].rpartition(b" ")[0] or lines[0]
        return "libsvm" if _LINE.match(short) and b":" in head else "table"
    return None


def read(path: str | Path, format: str | None = None, **options: Any) -> Dataset:
    """A data set from a file or a folder, exactly as it is distributed.

    Args:
        path: a file or a folder.
        format: a key of `FORMATS`, such as "huggingface" for a name on the hub (default: what the
            content says: magic numbers, members of archives, names in folders).
        **options: what the function of the format takes, as in
            `read("adult.csv", target="income", client="country")`.

    Raises:
        ValueError: an unknown format, or one that cannot be recognised; a truncated or wrong file.
        FileNotFoundError: there is nothing of that name.

    Example:
        >>> np.savez("mine.npz", x=np.ones((9, 2)), y=np.arange(9) % 3)
        >>> data.read("mine.npz").classes
        3
    """
    place = Path(path)
    if format is None:
        if not place.exists():
            raise FileNotFoundError(
                f'no file or folder {path}; for a name on the hub, format="huggingface"'
            )
        format = _folder(place) if place.is_dir() else _file(place, options)
        if format is None:
            raise bad(path, f"one of the formats {', '.join(FORMATS)}", "none of them")
    if format not in FORMATS:
        raise ValueError(f"no format {_nearest(format, list(FORMATS))}")
    if format == "table" and "target" not in options:
        raise bad(path, 'the column of labels, target="label"', "a table without it")
    return FORMATS[format](path, **options)
