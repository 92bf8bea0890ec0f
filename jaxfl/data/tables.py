"""Tables with a client column: CSV, Parquet, Arrow, and Hugging Face data sets."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.data import text
from jaxfl.data.partition import Number, Seed
from jaxfl.data.parts import (
    Part,
    Share,
    assemble,
    bad,
    collect,
    known_ids,
    opened,
    pixels,
    reading,
    tokens_of,
)
from jaxfl.data.sets import Dataset, _nearest


def _lazily(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ImportError(f"{name} is not installed: pip install 'jaxfl[data]'") from error


def _column(path: Any, name: str, cells: list[str]) -> np.ndarray:
    """Integers if all cells are, else numbers, else strings."""
    for dtype in (np.int64, np.float64):
        try:
            return np.array(cells).astype(dtype)
        except (ValueError, OverflowError):
            pass
    return np.array(cells)


def _csv(path: str | Path, delimiter: str) -> dict[str, np.ndarray]:
    with reading(path, "CSV"), opened(path) as stream:
        lines = csv.reader(
            io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True
        )
        names = next(lines, [])
        if not names or len(set(names)) < len(names):
            raise bad(path, "a first line of different column names", names)
        rows = []
        for row in lines:
            if len(row) != len(names) and row:
                found = f"{len(row)} in line {lines.line_num}"
                raise bad(path, f"{len(names)} cells, as many as names", found)
            rows += [row] if row else []
        if not rows:
            raise bad(path, "rows below the names", "none")
        return {n: _column(path, n, list(cells)) for n, cells in zip(names, zip(*rows))}


def _arrow(path: str | Path) -> Any:
    """A `pyarrow.Table` of Parquet, or of Arrow's file or stream, memory-mapped."""
    pa = _lazily("pyarrow")
    with reading(path, "Parquet or Arrow"):
        with open(path, "rb") as file:
            head = file.read(6)
        if head.startswith(b"PAR1"):
            table = _lazily("pyarrow.parquet").read_table(path, memory_map=True, use_threads=False)
        else:
            kind = pa.ipc.open_file if head == b"ARROW1" else pa.ipc.open_stream
            table = kind(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
        if len(set(table.column_names)) < len(table.column_names):
            raise bad(path, "different column names", table.column_names)
        return table


def _values(path: Any, table: Any, name: str) -> np.ndarray:
    """A column as an array: numbers, strings, equally long lists, decoded images."""
    if name not in table.column_names:
        raise bad(path, f"a column {_nearest(name, table.column_names)}", "none of that name")
    column = table[name]
    if column.null_count:
        raise bad(path, f"values everywhere in column {name!r}", f"{column.null_count} missing")
    kind = str(column.type)
    if "bytes: binary" in kind:  # Hugging Face's images
        from PIL import Image

        with reading(path, "image"):
            raw = [cell["bytes"] for cell in column.to_pylist()]
            return np.stack([np.asarray(Image.open(io.BytesIO(b))) for b in raw])
    if kind.startswith(("list", "large_list", "fixed_size_list", "extension")):
        with reading(path, f"lists {name!r} of equal length"):
            return np.stack([np.asarray(cell) for cell in column.to_pylist()])
    with reading(path, f"numbers or texts in column {name!r}"):
        values = column.to_numpy()
        return values.astype(str) if values.dtype == object else values


def table(
    path: str | Path,
    *,
    target: str,
    client: str | None = None,
    features: Sequence[str] | None = None,
    delimiter: str | None = None,
    classes: int | None = None,
    regression: bool = False,
    dtype: Any = np.float32,
    valid: Share = None,
    test: Share = None,
    by: str = "examples",
    seed: Seed = 0,
) -> Dataset:
    """Named columns in CSV (also compressed), Parquet or Arrow.

    Args:
        path: of the examples to train with.
        target: the column of labels or targets; strings are renumbered in alphabetical order.
        client: the column of client ids; without it, no partition.
        features: the columns of x, in this order (default: all others).
        delimiter: between the cells of a CSV (default: a tab in `*.tsv`, else a comma).
        classes: number of classes (default: the largest label plus one).
        regression: the target is a number, also if all of its values are whole.
        dtype: of x.
        valid: share for validation (default: 0.15), or a file.
        test: share for the test (default: 0.15), or a file.
        by: "examples", or "clients" to share out whole clients.
        seed: a number or a NumPy generator, for the split.

    Raises:
        ValueError: a truncated or wrong file; a line with too many or few cells; a column that is
            missing, or a feature that is not a number.
        ImportError: Parquet or Arrow without `jaxfl[data]`.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("adult.csv").write_text('''age,hours,country,income
        ... 30,40,fr,low
        ... 40,35,de,high
        ... 50,20,fr,low
        ... ''')
        >>> adult = data.table("adult.csv", target="income", client="country", valid=0, test=0)
        >>> adult.train["x"].tolist(), adult.train["y"].tolist(), adult.names.tolist()
        ([[30.0, 40.0], [40.0, 35.0], [50.0, 20.0]], [1, 0, 1], ['de', 'fr'])
    """

    def load(file: str | Path) -> tuple[str | Path, Mapping[str, np.ndarray]]:
        with open(file, "rb") as stream:
            head = stream.read(6)
        if head.startswith(b"PAR1") or head == b"ARROW1" or Path(file).suffix == ".arrow":
            arrow = _arrow(file)
            if not arrow.num_rows:
                raise bad(file, "rows", "none")
            known = arrow.column_names
            names = {target, client, *features}.intersection(known) if features else known
            return file, {n: _values(file, arrow, n) for n in names}
        tabs = ".tsv" in Path(file).name
        return file, _csv(file, delimiter or ("\t" if tabs else ","))

    files, valid, test = collect(path, valid, test, load)
    parts = {}
    for part, (file, columns) in files.items():
        wanted = features or [n for n in columns if n not in (target, client)]
        for name in [*wanted, target, *([] if client is None else [client])]:
            if name not in columns:
                raise bad(file, f"a column {_nearest(name, list(columns))}", "none of that name")
        for name in wanted:
            if columns[name].dtype.kind not in "buif" or columns[name].ndim != 1:
                found = f"{columns[name].dtype} {str(columns[name][0])[:40]!r}"
                raise bad(file, f"numbers in column {name!r}; choose with features=", found)
        if not wanted:
            raise bad(file, f"columns besides {target!r} and {client!r}", "none")
        x = np.stack([columns[name].astype(np.float64) for name in wanted], axis=1)
        parts[part] = Part(x, columns[target], None if client is None else columns[client])
    parts, known = _renumbered(path, parts)
    return assemble(
        path,
        parts,
        classes=known or classes,
        regression=regression,
        valid=valid,
        test=test,
        by=by,
        seed=seed,
        dtype=dtype,
    )


def _renumbered(path: Any, parts: dict[str, Part]) -> tuple[dict[str, Part], int | None]:
    """Labels that are strings as numbers, and how many there are."""
    if all(part.y.dtype.kind not in "US" for part in parts.values()):
        return parts, None
    whole = np.concatenate([p.y.astype(str) for p in parts.values()])
    names, y = np.unique(known_ids(path, whole), return_inverse=True)
    cut = np.split(y, np.cumsum([len(p.y) for p in parts.values()])[:-1])
    return {k: p._replace(y=v) for (k, p), v in zip(parts.items(), cut)}, len(names)


_PART = re.compile(r"(?:^|[^a-z])(train|test|valid|dev)", re.IGNORECASE)
_X, _Y = ("image", "img", "text", "sentence", "x"), ("label", "labels", "fine_label", "y")


def huggingface(
    path: str | Path,
    *,
    config: str | None = None,
    x: str | None = None,
    y: str | None = None,
    client: str | None = None,
    vocabulary: int | Sequence[str] | Path = 10000,
    length: int = 25,
    classes: int | None = None,
    regression: bool = False,
    dtype: Any = np.float32,
    valid: Number | None = None,
    test: Number | None = None,
    by: str = "examples",
    seed: Seed = 0,
) -> Dataset:
    """A Hugging Face data set: local Parquet or Arrow, else by its name from the hub.

    Args:
        path: a file, a folder of files (also of `save_to_disk`) whose names or folders say train,
            test or valid, or a name such as "ylecun/mnist", which needs a network.
        config: the configuration, by name.
        x: the column of images, texts or lists of numbers (default: image, img, text, sentence or
            x).
        y: the column of labels (default: label, labels, fine_label or y).
        client: the column of client ids; without it, no partition.
        vocabulary: of texts: the words, a file of them, or how many of the most frequent ones.
        length: of texts, in words.
        classes: number of classes (default: the largest label plus one).
        regression: y are targets, also if they are whole numbers.
        dtype: floats have the pixels of images in [0, 1]; np.uint8 the bytes.
        valid: share for validation, if the set has none (default: 0.15).
        test: share for the test, if the set has none (default: 0.15).
        by: "examples", or "clients" to share out whole clients.
        seed: a number or a NumPy generator, for the split.

    Returns:
        x is `[N, height, width, channels]` for images, `[N, length]` words for texts.

    Raises:
        ValueError: a truncated or wrong file; no such column; images of several sizes.
        ImportError: without `jaxfl[data]`.

    Example:
        >>> import pyarrow as pa
        >>> import pyarrow.parquet
        >>> rows = pa.table({"text": ["so good", "so bad", "good day"], "label": [1, 0, 1]})
        >>> pa.parquet.write_table(rows, "train.parquet")
        >>> data.huggingface("train.parquet", length=3, valid=0, test=0).train["x"].shape
        (3, 3)
    """
    pa, place = _lazily("pyarrow"), Path(path)
    found: dict[str, Any] = {}
    if place.exists():
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        for file in files:
            if place.is_dir() and file.suffix not in (".parquet", ".arrow"):
                continue
            said = _PART.search(str(file.relative_to(place))) if place.is_dir() else None
            part = {"dev": "valid"}.get(said[1].lower(), said[1].lower()) if said else "train"
            found.setdefault(part, []).append(_arrow(file))
        if "train" not in found:
            raise bad(path, "*.parquet or *.arrow to train with", ", ".join(found) or "none")
        with reading(path, "Parquet or Arrow"):
            found = {part: pa.concat_tables(tables) for part, tables in found.items()}
    else:
        hub = _lazily("datasets")
        with reading(path, "Hugging Face data set, here or on the hub"):
            for part, rows in hub.load_dataset(str(path), config).items():
                said = _PART.search(part)
                if said and said[1] not in found:
                    name = {"dev": "valid"}.get(said[1], said[1])
                    found[name] = rows.with_format("arrow")[:]
        if "train" not in found:
            raise bad(path, "a split `train`", ", ".join(found) or "none")
    parts, tokens = {}, None
    for part in sorted(found, key=("train", "valid", "test").index):
        names = found[part].column_names
        columns = []
        for word, given, usual in (("x", x, _X), ("y", y, _Y)):
            name = given or next((n for n in usual if n in names), None)
            if name is None:
                raise bad(path, f"a column for {word}, {word}= one of {', '.join(names)}", "none")
            columns.append(_values(path, found[part], name))
        data, labels = columns
        if data.dtype.kind == "U":
            sentences = [text.split_words(v) for v in data]
            tokens = tokens or tokens_of(path, sentences, vocabulary)
            data = text.padded(sentences, tokens, length)
        elif data.dtype == np.uint8:
            data = pixels(data, dtype)
            data = data[..., None] if data.ndim == 3 else data
        ids = None if client is None else _values(path, found[part], client)
        parts[part] = Part(data, labels, ids)
    parts, known = _renumbered(path, parts)
    return assemble(
        path,
        parts,
        classes=known or classes,
        regression=regression,
        valid=valid,
        test=test,
        by=by,
        seed=seed,
        dtype=dtype,
        vocabulary=tokens.words if tokens else (),
    )
