"""Tables with a client column: CSV, Parquet, Arrow, and Hugging Face data sets."""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.data import text
from jaxfl.data.partitioners import Number, Seed
from jaxfl.data.parts import (
    MISSING,
    Layout,
    Part,
    Share,
    Texts,
    assemble,
    bad,
    collect,
    number,
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


_BLOCK = 4096  # lines of a CSV at a time
LARGEST = 2**32  # bytes of its text


def _floats(file: Any, name: str, cells: Any, lines: Any, layout: Layout) -> np.ndarray:
    """A block of a column of x, each cell finite in its type."""
    dtype, text = np.dtype(layout.dtype), "".join(cells)
    try:
        if not text.isascii() or "_" in text:  # float() takes 1_0, and digits of other scripts
            raise ValueError
        cast, fits = _fits(np.fromiter(map(float, cells), float, len(cells)), dtype)
        if fits.all():
            return cast
    except ValueError:
        pass
    for cell, line in zip(cells, lines):
        found = f"{cell[:60]!r} in line {line}, column {name!r}"
        if cell.strip() in layout.missing:
            raise bad(file, f"numbers in column {name!r}", f"{found}, which means: missing")
        value = number(cell)
        if value is None:
            raise bad(file, f"numbers in column {name!r}; choose with features=", found)
        if not _fits(np.array([value], float), dtype)[1].all():
            raise bad(file, f"numbers that {dtype} has in column {name!r}", found)
    raise bad(file, f"numbers in column {name!r}", f"others up to line {lines[-1]}")


def _fits(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Numbers in a type, and which of them it has."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    return cast, np.isfinite(cast) if dtype.kind == "f" else cast == values


def _named(
    file: Any, known: Sequence[str], target: str, client: str | None, layout: Layout, hint: str
) -> Layout:
    """The layout with the columns of x: those of train, or all others; they must be there."""
    others = tuple(n for n in known if n not in (target, client))
    columns = layout.columns or others
    for name in (*columns, target, *([] if client is None else [client])):
        if name not in known:
            raise bad(file, f"a column {_nearest(name, known)}", f"none of that name{hint}")
    if not columns:
        raise bad(file, f"columns besides {target!r} and {client!r}", "none")
    return replace(layout, columns=columns)


def _csv(
    file: str | Path,
    target: str,
    client: str | None,
    layout: Layout,
    delimiter: str,
    encoding: str,
) -> tuple[Part, Layout]:
    """A CSV, read in blocks: memory goes by numbers and by different names."""
    with reading(file, "CSV"), opened(file) as stream:
        head = stream.read(4)
        stream.seek(0)
        if encoding == "utf-8":  # with the marks that name it, or UTF-16
            encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        lines = csv.reader(
            io.TextIOWrapper(stream, encoding, newline=""),
            delimiter=delimiter,
            strict=True,
            skipinitialspace=True,  # between a delimiter and a cell
        )
        try:
            names = next(lines, [])
            if not names or len(set(names)) < len(names):
                raise bad(file, "a first line of different column names", names)
            other = [d for d in ";\t|, " if len(names) == 1 and d in names[0]]
            hint = f"; delimiter={other[0]!r}" if other else ""
            hint = "; encoding='utf-16'" if "\0" in names[0] else hint
            layout = _named(file, names, target, client, layout, hint)
            places = [names.index(n) for n in layout.columns]
            y, owner = Texts(target, False), Texts(client or "", False)
            kept: list[tuple[int, Texts]] = [(names.index(target), y)]
            kept += [] if client is None else [(names.index(client), owner)]
            blocks, rows, at = [], [], []

            def add() -> None:
                cells = list(zip(*rows))
                x = np.empty((len(rows), len(places)), layout.dtype)
                for k, (name, place) in enumerate(zip(layout.columns, places)):
                    x[:, k] = _floats(file, name, cells[place], at, layout)
                for place, column in kept:
                    column.add(cells[place], at)
                blocks.append(x)
                if stream.tell() > LARGEST:
                    found = "more; as Parquet, pandas.read_csv(path).to_parquet(path + '.parquet')"
                    raise bad(file, f"a CSV of at most {LARGEST / 2**30:g} GiB", found)
                rows.clear()
                at.clear()

            for row in lines:
                if row and len(row) != len(names):
                    found = f"{len(row)} in line {lines.line_num}"
                    raise bad(file, f"{len(names)} cells, as many as names", found)
                if row:
                    rows.append(row)
                    at.append(lines.line_num)
                    if len(rows) == _BLOCK:
                        add()
            if rows:
                add()
        except UnicodeError as error:
            found = f"{error}; name another, encoding='latin-1' or encoding='utf-16'"
            raise bad(file, f"text in {encoding}", found) from error
        if not blocks:
            raise bad(file, "rows below the names", "none")
    x = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return Part(x, y, None if client is None else owner, file), layout


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


def _values(path: Any, table: Any, name: str) -> Any:
    """A column as an array: numbers, objects (texts), equally long lists, decoded images."""
    if name not in table.column_names:
        raise bad(path, f"a column {_nearest(name, table.column_names)}", "none of that name")
    column = table[name]
    if column.null_count:
        first = column.is_null().to_numpy().argmax()
        found = f"{column.null_count} missing, the first in example {first}"
        raise bad(path, f"values everywhere in column {name!r}", found)
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
        return Texts.of(values, name) if values.dtype == object else values


def _typed(
    file: str | Path, target: str, client: str | None, layout: Layout
) -> tuple[Part, Layout]:
    """A table of Parquet or Arrow."""
    arrow = _arrow(file)
    if not arrow.num_rows:
        raise bad(file, "rows", "none")
    layout = _named(file, arrow.column_names, target, client, layout, "")
    x = np.empty((arrow.num_rows, len(layout.columns)), np.float64)
    for k, name in enumerate(layout.columns):
        values = _values(file, arrow, name)
        expected = f"numbers in column {name!r}; choose with features="
        if isinstance(values, Texts):
            raise bad(file, expected, values.where(next(iter(values.number))))
        if values.dtype.kind not in "buif" or values.ndim != 1:
            raise bad(file, expected, f"{values.dtype} {str(values[0])[:40]!r}")
        x[:, k] = values
        fits = _fits(x[:, k], np.dtype(layout.dtype))[1]
        if not fits.all():
            i = fits.argmin()
            found = f"{values[i]} in example {i}, column {name!r}"
            raise bad(file, f"finite numbers that {np.dtype(layout.dtype)} has", found)
    ids = None if client is None else _values(file, arrow, client)
    return Part(x, _values(file, arrow, target), ids, file), layout


def table(
    path: str | Path,
    *,
    target: str,
    client: str | None = None,
    features: Sequence[str] | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    missing: Sequence[str] = MISSING,
    classes: int | None = None,
    regression: bool = False,
    dtype: Any = np.float32,
    valid: Share = None,
    test: Share = None,
    by: str = "examples",
    seed: Seed = 0,
) -> Dataset:
    """Named columns in CSV (also compressed), Parquet or Arrow.

    What the file to train with decides, the others are read by: which columns x has, by name, and
    the labels. Ids of clients are names, or integers if all of them are written so. A CSV is read
    in blocks, and may have 4 GiB of text.

    Args:
        path: of the examples to train with.
        target: the column of labels or targets; strings are renumbered in alphabetical order.
        client: the column of client ids; without it, no partition.
        features: the columns of x, in this order (default: all others).
        delimiter: between the cells of a CSV (default: a tab in `*.tsv`, else a comma).
        encoding: of the text of a CSV; UTF-16 with its mark is recognised.
        missing: texts that mean that there is none, refused in labels and ids (default: those of
            `jaxfl.data.parts.MISSING`: "", "NA", "nan", "?", ...).
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

    if delimiter is not None and len(delimiter) != 1:
        raise ValueError(f"delimiter must be one character; got {delimiter!r}: delimiter=';'")
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise ValueError(f"{error}: encoding='latin-1'") from error
    files, valid, test = collect(path, valid, test)
    layout = Layout(dtype, classes, regression, missing, tuple(features or ()))
    parts = {}
    for part, file in files.items():
        with open(file, "rb") as stream:
            head = stream.read(6)
        if head.startswith(b"PAR1") or head == b"ARROW1" or Path(file).suffix == ".arrow":
            parts[part], layout = _typed(file, target, client, layout)
        else:
            comma = delimiter or ("\t" if ".tsv" in Path(file).name else ",")
            parts[part], layout = _csv(file, target, client, layout, comma, encoding)
    return assemble(path, parts, layout, valid=valid, test=test, by=by, seed=seed)


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
    missing: Sequence[str] = MISSING,
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
        missing: texts that mean that there is none, refused in labels and ids.
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
    parts, tokens, raw = {}, None, None
    for part in sorted(found, key=("train", "valid", "test").index):
        file = path if len(found) == 1 else f"{path} ({part})"
        names = found[part].column_names
        if part == "train":  # which columns, and what is in them: the others follow
            x, y = x or _usual(path, names, "x", _X), y or _usual(path, names, "y", _Y)
        data, labels = (_values(file, found[part], name or "") for name in (x, y))
        kind = "texts" if isinstance(data, Texts) else str(data.dtype)
        raw = raw or kind
        if kind != raw:
            raise bad(file, f"{raw} in column {x!r}, as in train", kind)
        if isinstance(data, Texts):
            split = [text.split_words(v) for v in data.number]
            sentences = [split[i] for i in data.code]
            tokens = tokens or tokens_of(path, sentences, vocabulary)
            data = text.padded(sentences, tokens, length)
        elif data.dtype == np.uint8:
            data = pixels(data, dtype)
            data = data[..., None] if data.ndim == 3 else data
        ids = None if client is None else _values(file, found[part], client)
        parts[part] = Part(data, labels, ids, file)
    return assemble(
        path,
        parts,
        Layout(dtype, classes, regression, missing),
        valid=valid,
        test=test,
        by=by,
        seed=seed,
        vocabulary=tokens.words if tokens else (),
    )


def _usual(path: Any, names: Sequence[str], word: str, usual: Sequence[str]) -> str:
    name = next((n for n in usual if n in names), None)
    if name is None:
        raise bad(path, f"a column for {word}, {word}= one of {', '.join(names)}", "none")
    return name
