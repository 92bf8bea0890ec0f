"""Files whose parts do not fit each other: refused, or read as they say; none is silent.

A `World` is a table in words: columns and cells of every part. Mutations change it, or only how it
is written; `truth` says what it means, cell by cell and by name, without any reader of jaxfl.
`verdict` writes it in a format, reads it, and compares.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
from hypothesis import strategies as st

from jaxfl import data

MISSING = ["", "NA", "nan", "NaN", "?", "null", "None", "N/A"]
NUMBERS = ["1.5", "1", "+1", "-2", "1e1", ".5", "2.", "007", "1e-3", "-0"]
WRONG = ["1_0", "0x10", "inf", "1e999", "\u0663", "1,5", "x", "1 2", "--1", "1e", "."]
IDS = ["7", "007", "7.0", "1_0", "10", "+7", "x7", "é", "20251130123456789012", "7 ", "Infinity"]
IDS += ["20251130123456789013", "1e1", "-7", "\u0667", "true"]
LABELS = ["0", "1", "2", "3", "1.0", "01", "1_0", "10", "-1", "0.5", "b", "1e0", "9" * 30, "nan "]
TABLES = ("csv", "parquet")


@dataclass
class World:
    """What the files of a set say, in words."""

    columns: dict[str, list[str]]  # names of the columns, by part
    rows: dict[str, list[list[str]]]  # cells, by part
    style: dict[str, dict[str, Any]] = field(default_factory=dict)  # how a part is written
    traits: set[str] = field(default_factory=set)  # what is in no cell, such as links

    def column(self, part: str, name: str) -> list[str] | None:
        """Its cells; None where it is not there once."""
        if self.columns[part].count(name) != 1:
            return None
        place = self.columns[part].index(name)
        return [row[place] for row in self.rows[part]]


# Mutations -----------------------------------------------------------------------------------


@st.composite
def worlds(draw: Any, kind: str) -> World:
    """A right set with one to three mutations of what it says or how."""
    tables = kind in TABLES
    all_words = ["0 1 2", "0.0 1.0 2.0", "0.5 1.5 2", "a b c"]
    ops = "swap rename lose twice more cell cell column column shift style ragged".split()
    ops = ops if tables else "cell column shift style".split()
    all_words = {"hdf5": all_words[:1], "leaf": all_words[:3], "libsvm": all_words[:2]}.get(
        kind, all_words
    )
    rows, words = {}, draw(st.sampled_from(all_words)).split()
    people = draw(st.sampled_from(["7 8 9", "ann bob é"])).split()
    for part, n in (("train", 6), ("test", 4)):
        rows[part] = [
            [str((i * 7 + n) % 5 + 0.5), str(i - 1), words[i % 3], people[i % 3]] for i in range(n)
        ]
    world = World({part: ["a", "b", "y", "who"] for part in rows}, rows, {p: {} for p in rows})
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from(["train", "test", "test"]))
        names, cells = world.columns[part], world.rows[part]
        what = draw(st.sampled_from(ops))
        if any(len(row) != len(names) for row in cells):
            continue
        if what == "swap":
            order = draw(st.permutations(range(len(names))))
            names[:] = [names[i] for i in order]
            cells[:] = [[row[i] for i in order] for row in cells]
        elif what == "rename":
            names[draw(st.integers(0, len(names) - 1))] = draw(
                st.sampled_from(["c", "A", "a ", "b", "y", ""])
            )
        elif what == "lose" and len(names) > 1:
            i = draw(st.integers(0, len(names) - 1))
            del names[i]
            for row in cells:
                del row[i]
        elif what == "twice" or what == "more":
            i = draw(st.integers(0, len(names) - 1))
            names.append(names[i] if what == "twice" else "more")
            for row in cells:
                row.append(row[i] if what == "twice" else "1")
        elif what in ("cell", "column"):
            name = draw(st.sampled_from(["a", "b", "y", "y", "who", "who"]))
            pool = {"y": LABELS, "who": IDS}.get(name, NUMBERS + WRONG if tables else NUMBERS)
            if kind == "hdf5" and name == "y":
                pool = ["0", "1", "61", "62", "-1"]
            new = draw(st.sampled_from(pool))
            if tables or name == "who" or (name == "y" and kind != "hdf5"):
                new = draw(st.just(new) | st.sampled_from(MISSING))
            first = draw(st.integers(0, len(cells) - 1))
            for i, row in enumerate(cells):
                for k, n in enumerate(names):
                    if n == name and (what == "column" or i == first):
                        row[k] = new if what == "cell" else _other(name, row[k], new)
        elif what == "shift":
            by = draw(st.sampled_from([1, -1, 10]))
            for row in cells:
                for k, n in enumerate(names):
                    if n == "y" and row[k].isdigit():
                        row[k] = str(int(row[k]) + by)
        elif what == "style":
            world.style[part] |= draw(
                st.sampled_from([{"codec": c} for c in CODECS])
                | st.sampled_from([{"delimiter": d} for d in (";", "\t", "|", ", ", " ")])
                | st.sampled_from([{"end": "\r\n"}, {"end": "\n\n"}, {"quoted": True}])
                | st.sampled_from([{"type": t} for t in ("text", "float", "int", "u1")])
            )
        elif what == "ragged" and kind == "csv":
            row = cells[draw(st.integers(0, len(cells) - 1))]
            row.append("1") if draw(st.booleans()) else row.pop()
    if kind == "hdf5" and draw(st.booleans()):
        world.traits.add(draw(st.sampled_from(["soft", "external", "storage", "virtual", "group"])))
    return world


TYPED = ("parquet", "huggingface", "npz")
CODECS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]


def _other(name: str, cell: str, new: str) -> str:
    """A whole column in another type: 7 as 7.0, as 07, as text."""
    return {"0": cell + ".0", "1": "0" + cell, "2": "x" + cell}.get(new[-1:], cell)


# What it means -------------------------------------------------------------------------------


def _value(cell: str) -> float | None:
    cell = cell.strip(" ")
    if not cell or set(cell) - set("0123456789+-.eE"):
        return None
    try:
        found = float(cell)
    except ValueError:
        return None
    return found if abs(found) <= np.finfo(np.float32).max else None


def truth(world: World, kind: str) -> dict[str, tuple] | None:
    """x, y and client by part, names of the classes; None where nothing right can be said."""
    twice = any(len(set(names)) < len(names) for names in world.columns.values())
    if world.traits or (kind in TABLES and twice):
        return None
    if any(len(r) != len(world.columns[p]) for p, rows in world.rows.items() for r in rows):
        return None
    x_names = (
        [n for n in world.columns["train"] if n not in ("y", "who")] if kind in TABLES else "ab"
    )
    out, known = {}, None
    for part in ("train", "test"):
        x = [world.column(part, n) for n in x_names]
        y, who = world.column(part, "y"), world.column(part, "who")
        if not x or None in x or y is None or who is None:
            return None
        no_id = [""] if kind in ("leaf", "hdf5") else MISSING
        if any(cell.strip() in MISSING for cells in (*x, y) for cell in cells):
            return None
        if kind != "libsvm" and any(cell.strip() in no_id for cell in who):
            return None
        numbers = [[_value(cell) for cell in cells] for cells in x]
        if any(v is None for cells in numbers for v in cells):
            return None
        padded = kind != "libsvm"  # names then
        values = [None if padded and re.fullmatch(r"[+-]?0\d+", c) else _value(c) for c in y]
        if kind in ("libsvm", "hdf5", "leaf") and None in values:
            return None
        if kind == "libsvm":
            known = known or sorted(set(values))
            if set(values) - set(known) or any(v != int(v) for v in known):
                return None
            values = [known.index(v) for v in values]
            out[part] = np.array(numbers, np.float32).T, np.array(values), who, max(2, len(known))
            continue
        if kind == "hdf5":
            if any(v != int(v) or not 0 <= v < 62 for v in values):
                return None
            out[part] = np.array(numbers, np.float32).T, np.array(values), who, 62
            continue
        if known is None:
            words = None in values or (
                kind in TYPED and _typed(y, world.style[part]).dtype == object
            )
            known = sorted(set(y)) if words else values
            whole = words or all(v == int(v) for v in known)
        if words:
            if set(y) - set(known):
                return None
            values = [known.index(c) for c in y]
        elif None in values or (whole and any(v != int(v) for v in values)):
            return None
        elif whole and not 0 <= min(values) <= max(values) <= max(known) < 2**31:
            return None
        classes = None if not whole else len(known) if words else int(max(known)) + 1
        out[part] = np.array(numbers, np.float32).T, np.array(values, np.float32), who, classes
    return out


# Written and read ----------------------------------------------------------------------------


def _csv(world: World, part: str, folder: Path) -> Path:
    style = world.style[part]
    quoted, delimiter = style.get("quoted"), style.get("delimiter", ",")

    def cell(text: str) -> str:
        needs = quoted or text != text.strip() or any(c in text for c in '",;\t|\n')
        return '"' + text.replace('"', '""') + '"' if needs else text

    lines = [delimiter.join(map(cell, row)) for row in (world.columns[part], *world.rows[part])]
    text = style.get("end", "\n").join(lines)
    path = folder / f"{part}.csv"
    path.write_bytes(text.encode(style.get("codec", "utf-8"), "replace"))
    return path


def _typed(cells: list[str], style: dict) -> np.ndarray:
    """A column in the type that its cells are of, or in another."""
    wanted = style.get("type", "")
    if wanted == "text":
        return np.array(cells, object)
    values = [_value(c) for c in cells]
    if None in values or any(re.fullmatch(r"[+-]?0\d+", c) for c in cells):
        return np.array(cells, object)
    if len(set(values)) < len(set(cells)):  # one number, written twice, or too long for a float
        return np.array(cells, object)
    if wanted != "float" and all(re.fullmatch(r"-?\d{1,18}", c) for c in cells):
        small = wanted == "u1" and all(0 <= v < 256 for v in values)
        return np.array([int(c) for c in cells], np.uint8 if small else np.int64)
    return np.array(values, np.float64)


def _parquet(world: World, part: str, folder: Path) -> Path | None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = [[r[k] for r in world.rows[part]] for k in range(len(world.columns[part]))]
    arrays = [pa.array(_typed(c, world.style[part]).tolist()) for c in columns]
    path = folder / f"{part}.parquet"
    parquet.write_table(pa.Table.from_arrays(arrays, world.columns[part]), path)
    return path


def _x(world: World, part: str) -> np.ndarray | None:
    """Columns a and b side by side, where both are there and of numbers."""
    cells = [world.column(part, n) for n in "ab"]
    if None in cells:
        return None
    columns = [np.array([_value(v) if _value(v) is not None else np.nan for v in c]) for c in cells]
    if np.isnan(columns).any():
        return None
    if (np.stack(columns) == np.floor(columns)).all() and world.style[part].get("type") == "int":
        columns = [c.astype(np.int64) for c in columns]
    kind = {"float": np.float64, "int": np.int64}.get(world.style[part].get("type"), None)
    x = np.stack(columns, 1)
    return x.astype(kind) if kind is not None and (x == x.astype(kind)).all() else x


def _strings(column: np.ndarray) -> np.ndarray:
    return np.array(column.tolist(), str) if column.dtype == object else column


def write(world: World, kind: str, folder: Path):
    """The files, and what reads them; None where the format cannot say it."""
    if kind == "csv":
        train, test = (_csv(world, part, folder) for part in ("train", "test"))
        return lambda: data.table(train, target="y", client="who", valid=0, test=test)
    if kind == "parquet":
        train, test = (_parquet(world, part, folder) for part in ("train", "test"))
        return lambda: data.table(train, target="y", client="who", valid=0, test=test)
    parts = ("train", "test")
    x = {part: _x(world, part) for part in parts}
    y, who = ({part: world.column(part, n) for part in parts} for n in ("y", "who"))
    if any(v[part] is None for v in (x, y, who) for part in parts):
        return None
    if kind == "huggingface":
        import pyarrow as pa
        from pyarrow import parquet

        for part in parts:
            style = world.style[part]
            names = [n for n in world.columns[part] if n in ("y", "who")] + ["x"]
            cells = {"x": x[part].tolist()}
            cells |= {n: _typed(world.column(part, n), style).tolist() for n in ("y", "who")}
            parquet.write_table(pa.table({n: cells[n] for n in names}), folder / f"{part}.parquet")
        return lambda: data.huggingface(folder, client="who", valid=0)
    if kind == "npz":
        arrays = {}
        for part in parts:
            style = world.style[part]
            arrays |= {f"x_{part}": x[part], f"y_{part}": _strings(_typed(y[part], style))}
            arrays[f"client_{part}"] = _strings(_typed(who[part], style))
        np.savez(folder / "a.npz", **arrays)
        return lambda: data.npz(folder / "a.npz", valid=0)
    if kind == "libsvm":
        for part in parts:
            lines = [f"{c} 1:{a!r} 2:{b!r}" for c, (a, b) in zip(y[part], x[part].tolist())]
            (folder / part).write_text("\n".join(lines))
        return lambda: data.libsvm(folder / "train", valid=0, test=folder / "test")
    if kind == "leaf":
        for part in parts:
            users: dict[str, Any] = {}
            for u, row, label in zip(
                who[part], x[part].tolist(), _typed(y[part], world.style[part])
            ):
                mine = users.setdefault(u, {"x": [], "y": []})
                mine["x"].append(row)
                mine["y"].append(label if isinstance(label, str) else label.item())
            record = {"users": [*users], "num_samples": [len(m["y"]) for m in users.values()]}
            (folder / part).mkdir(exist_ok=True)
            text = json.dumps(record | {"user_data": users})
            (folder / part / "a.json").write_text(text)
        return lambda: data.leaf(folder, valid=0)
    return _hdf5(world, x, y, who, folder)


def _hdf5(world, x, y, who, folder):
    import h5py

    secret = folder / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["pixels"] = np.full((1, 28, 28), 42.0, "f4")
        file["client/pixels"], file["client/label"] = np.full((1, 28, 28), 42.0, "f4"), [1]
    (folder / "secret.raw").write_bytes(np.full((1, 28, 28), 42.0, "f4").tobytes())
    for part in x:
        labels = _typed(y[part], {})
        if labels.dtype.kind != "i" or any("/" in u or not u for u in who[part]):
            return None
        with h5py.File(folder / f"some_{part}.h5", "w") as file:
            groups: dict[str, list[int]] = {}
            for i, u in enumerate(who[part]):
                groups.setdefault(u, []).append(i)
            for u, rows in groups.items():
                group = file.create_group(f"examples/{u}")
                group["pixels"] = np.tile(x[part][rows, :1, None].astype("f4"), (1, 28, 28))
                group["label"] = labels[rows]
            group = file["examples"].create_group("zz") if world.traits else None
            if group is not None:
                group["label"] = [1]
                if "soft" in world.traits:
                    group["pixels"] = h5py.SoftLink(f"/examples/{who[part][0]}/pixels")
                elif "external" in world.traits:
                    group["pixels"] = h5py.ExternalLink("secret.h5", "pixels")
                elif "storage" in world.traits:
                    raw = [(str(folder / "secret.raw"), 0, 28 * 28 * 4)]
                    group.create_dataset("pixels", (1, 28, 28), "f4", external=raw)
                elif "virtual" in world.traits:
                    view = h5py.VirtualLayout((1, 28, 28), "f4")
                    view[:] = h5py.VirtualSource("secret.h5", "pixels", (1, 28, 28))
                    group.create_virtual_dataset("pixels", view)
                else:
                    del file["examples/zz"]
                    file["examples/zz"] = h5py.ExternalLink("secret.h5", "client")
    return lambda: data.tff(folder / "some_train.h5", valid=0)


FORMATS = ("csv", "parquet", "huggingface", "npz", "libsvm", "leaf", "hdf5")


def verdict(world: World, kind: str, folder: Path) -> tuple[str, str]:
    """ "refused", "right", "silent", or "skipped" where a format cannot say it; and why."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    load = write(world, kind, folder)
    if load is None:
        return "skipped", ""
    with fuzzing.limits():
        try:
            found = load()
        except (ValueError, OSError) as error:
            said = str(error)
            assert str(folder) in said and len(said) < 3000, said
            return "refused", said
    right = truth(world, kind)
    if right is None:
        return "silent", "what says nothing right was read"
    try:
        for part, (x, y, who, classes) in right.items():
            _same(found, part, x, y, who, classes, kind, world.style[part])
    except AssertionError as error:
        return "silent", f"{part}: {error}"
    return "right", ""


def _same(found, part, x, y, who, classes, kind, style):
    examples = getattr(found, part)
    order = np.arange(len(y))
    if kind in ("leaf", "hdf5"):  # by client, in the order that the file has them
        keys = list(dict.fromkeys(who)) if kind == "leaf" else sorted(set(who), key=str.encode)
        order = np.array([i for k in keys for i, w in enumerate(who) if w == k])
    if kind == "hdf5":
        assert (examples["x"] == x[order, :1, None, None]).all(), "pixels"
    else:
        np.testing.assert_array_equal(examples["x"], x[order])
    np.testing.assert_array_equal(examples["y"], y[order])
    assert found.classes == classes, f"{found.classes} classes, not {classes}"
    if kind != "libsvm":
        partition = found.partitions[part]
        owner = np.empty(len(y), int)
        owner[partition.order] = partition.owner()
        typed = kind in TYPED and _typed(who, style).dtype != object
        word = (lambda v: float(v)) if typed else str
        names = [word(found.names[i]) for i in owner]
        assert names == [word(who[i]) for i in order], f"clients {names}"
