"""Sets that come with their users: LEAF's JSON and the HDF5 of TensorFlow Federated."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.data import text
from jaxfl.data.partitioners import Number, Seed, _head
from jaxfl.data.parts import (
    Layout,
    Part,
    assemble,
    bad,
    numbers,
    opened,
    pixels,
    reading,
    tokens_of,
)
from jaxfl.data.sets import Dataset
from jaxfl.hdf5 import member

# LEAF ------------------------------------------------------------------------------------------


def _refuse(word: str) -> Any:
    raise ValueError(f"{word}, which JSON has no numbers for")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two entries of one name, Python would take the last."""
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError(f"an entry twice in an object with {list(out)[:3]}")
    return out


def _leaf(paths: Sequence[Path]) -> dict[str, tuple[list, list]]:
    """Examples by user, of all files of a part."""
    users = {}
    for path in paths:
        with reading(path, "LEAF JSON"), opened(path) as stream:
            record = json.load(stream, parse_constant=_refuse, object_pairs_hook=_once)
        keys = ("users", "num_samples", "user_data")
        if not isinstance(record, dict) or any(k not in record for k in keys):
            found = list(record)[:5] if isinstance(record, dict) else type(record).__name__
            raise bad(path, f"an object with {', '.join(keys)}", found)
        names, sizes, data = (record[k] for k in keys)
        if (
            not isinstance(data, dict)
            or not isinstance(names, list)
            or set(data) != set(map(str, names))
        ):
            raise bad(path, "the users of `users` in `user_data`", f"{str(names)[:60]}")
        if not isinstance(sizes, list) or len(sizes) != len(names):
            raise bad(path, f"{len(names)} numbers in num_samples", str(sizes)[:60])
        for user, size in zip(names, sizes):
            mine = data[user] if isinstance(user, str) else None
            x, y = (mine.get(k) if isinstance(mine, dict) else None for k in "xy")
            if not isinstance(x, list) or not isinstance(y, list) or not x:
                raise bad(path, f"lists x and y of user {user!r}, not empty", str(mine)[:60])
            if not len(x) == len(y) == size:
                found = f"{len(x)} x, {len(y)} y, num_samples {size}"
                raise bad(path, f"equally many for user {user!r}", found)
            if user in users:
                raise bad(path, "every user once", f"{user!r} again")
            users[user] = x, y
    return users


def _jsons(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if re.search(r"\.json(\.gz)?$", p.name))


def leaf(
    path: str | Path,
    *,
    vocabulary: int | Sequence[str] | Path = 10000,
    length: int = 25,
    clients: int | Sequence[str] | None = None,
    classes: int | None = None,
    regression: bool = False,
    dtype: Any = np.float32,
    valid: Number | None = None,
    test: Number | None = None,
    by: str = "examples",
    seed: Seed = 0,
) -> Dataset:
    """LEAF's JSON: FEMNIST, Shakespeare, Sent140, and others whose x are lists of numbers.

    Args:
        path: a file, a folder of files, or one that has `train` and `test`, maybe in `data`.
        vocabulary: of Sent140: the words, a file of them, or how many of the most frequent ones.
        length: of Sent140's texts, in words.
        clients: the first so many users, or their names (default: all).
        classes: number of classes, 62 of FEMNIST (default: the largest label of all users to train
            with, plus one).
        regression: y are targets, also if they are whole numbers.
        dtype: of x, if it is numbers.
        valid: share for validation (default: 0.15).
        test: share for the test, if there is no `test` (default: 0.15).
        by: "examples", or "clients" to share out whole clients.
        seed: a number or a NumPy generator, for the split.

    Returns:
        x is `[N, 28, 28, 1]` for FEMNIST (0 is ink), `[N, 80]` characters for Shakespeare, whose y
        is the next one, `[N, length]` words for Sent140; the clients are the users.

    Raises:
        ValueError: a truncated or wrong file; users, x, y and num_samples that disagree; a user
            without examples.

    Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv 2018; their code was
        read.

    Deviations: characters and words are numbered as `Tokens` says; LEAF numbers characters from 0,
        and those that it does not know -1. LEAF pads with its unknown word.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> user = {"x": [[0.0, 1.0], [1.0, 0.0]], "y": [0, 1]}
        >>> record = {"users": ["anna"], "num_samples": [2], "user_data": {"anna": user}}
        >>> _ = Path("all.json").write_text(json.dumps(record))
        >>> data.leaf("all.json", valid=0, test=0).train["x"].tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    path = Path(path)
    folder = path / "data" if (path / "data" / "train").is_dir() else path
    files = {"train": [path]} if path.is_file() else {"train": _jsons(folder)}
    if (folder / "train").is_dir():
        files = {p: _jsons(folder / p) for p in ("train", "test") if (folder / p).is_dir()}
    if not files["train"]:
        raise bad(path, "files *.json, or train/*.json and test/*.json", "none")
    parts = {}
    users = {part: _leaf(found) for part, found in files.items() if found}
    chosen = {part: _choose(list(mine), clients) for part, mine in users.items()}
    flat = {
        part: [(u, x, y) for u in chosen[part] for x, y in zip(*mine[u])]
        for part, mine in users.items()
    }
    if not flat["train"]:
        raise bad(path, "the clients asked for", f"{', '.join(list(users['train'])[:5])}, ...")
    first: Any = flat["train"][0][1]
    tokens: Any = None
    kind = "Shakespeare" if isinstance(first, str) else "FEMNIST"
    kind = "Sent140" if isinstance(first, list) and any(isinstance(v, str) for v in first) else kind
    if kind == "Shakespeare":
        tokens = text.Tokens(text.LEAF_LETTERS)
    for part, rows in flat.items():
        ids = np.array([u for u, _, _ in rows], dtype=str)
        x, y = [x for _, x, _ in rows], [y for _, _, y in rows]
        with reading(path, f"LEAF ({kind})"):
            if kind == "Shakespeare":
                width = len(first)
                if not all(isinstance(v, str) and len(v) == width for v in x) or not all(
                    isinstance(v, str) and len(v) == 1 for v in y
                ):
                    raise bad(path, f"x of {width} characters, y of one", "others")
                x, y = text.padded(x, tokens, width), text.padded(y, tokens, 1)[:, 0]
            elif kind == "Sent140":
                if not all(isinstance(v, list) and len(v) > 4 and isinstance(v[4], str) for v in x):
                    raise bad(path, "the text of every tweet as x[4]", "another record")
                sentences = [text.split_words(v[4]) for v in x]
                tokens = tokens or tokens_of(path, sentences, vocabulary)
                x, y = text.padded(sentences, tokens, length), numbers(path, y)
            else:
                x = np.array(x)
                if x.dtype.kind not in "if" or x.ndim < 2:
                    raise bad(path, "x that are equally long lists of numbers", x.dtype)
                x = x.astype(np.float64)
                x = x.reshape(-1, 28, 28, 1) if x.shape[1:] == (784,) else x
                y = numbers(path, y)
                if part == "train" and classes is None and not regression:
                    everyone = numbers(path, [v for _, mine in users[part].values() for v in mine])
                    whole = (everyone == np.floor(everyone)) & (np.abs(everyone) < 2**31)
                    classes = _head(everyone.astype(np.int64)) if whole.all() else None
        one = len(files[part]) == 1
        parts[part] = Part(x, y, ids, files[part][0] if one else files[part][0].parent)
    classes = tokens.size if kind == "Shakespeare" and tokens else classes
    classes = 2 if kind == "Sent140" and classes is None else classes
    return assemble(
        path,
        parts,
        Layout(dtype, classes, regression, ("",)),
        valid=valid,
        test=test,
        by=by,
        seed=seed,
        vocabulary=tokens.words if tokens else (),
    )


def _choose(known: list[str], clients: int | Sequence[str] | None) -> list[str]:
    """The first clients, those named (as far as a part has them), or all."""
    if clients is None:
        return known
    if isinstance(clients, int):
        if clients < 1:
            raise ValueError(f"clients must be at least 1; got {clients}")
        return known[:clients]
    there = set(known)
    return [c for c in clients if c in there]


# TensorFlow Federated --------------------------------------------------------------------------

_FIELDS = {
    "EMNIST": ("pixels", "label"),
    "CIFAR-100": ("image", "label"),
    "Shakespeare": ("snippets",),
    "StackOverflow": ("tokens",),
}
_SUFFIX = re.compile(r"(.*_|^)(train|test|held_?out)(\.h5|\.hdf5)$")
_INFLATION = 1100  # bytes that DEFLATE can make of one, rounded up


def _h5(path: Path, clients: int | Sequence[str] | None, more: Sequence[str]):
    """Kind of a file, and field by field the arrays of its chosen clients."""
    import h5py

    with reading(path, "HDF5"), h5py.File(path, "r") as file:
        group: Any = member(file, "examples")
        if not isinstance(group, h5py.Group) or not len(group):
            raise bad(path, "a group `examples` with a group per client", list(file)[:5])
        names: list[str] = list(group)
        ids = _choose(names, clients)
        if not ids:
            raise bad(path, "the clients asked for", f"{', '.join(names[:5])}, ...")
        members: dict[str, Any] = {i: member(group, i) for i in ids}
        fields = set(members[ids[0]])
        kind = next((k for k, need in _FIELDS.items() if fields >= set(need)), None)
        if kind is None:
            found = f"{sorted(fields)} of {ids[0]!r}"
            raise bad(path, f"one of {', '.join('+'.join(f) for f in _FIELDS.values())}", found)
        names = [*_FIELDS[kind], *(m for m in more if m in fields)]
        limit, columns = _INFLATION * path.stat().st_size, {name: [] for name in names}
        sizes = []
        for i in ids:
            length = set()
            for name in names:
                values = member(members[i], name)
                if not isinstance(values, h5py.Dataset) or not values.ndim:
                    raise bad(path, f"an array {name!r} of client {i!r}", sorted(members[i]))
                if values.nbytes > limit or not values.id.get_storage_size():
                    raise bad(path, f"{name!r} of client {i!r}, stored", f"{values.shape}, not so")
                columns[name].append(values[()])
                length.add(len(columns[name][-1]))
            if len(length) > 1 or 0 in length:
                found = ", ".join(f"{len(columns[n][-1])} {n}" for n in names)
                raise bad(path, f"equally many examples of client {i!r}, at least one", found)
            sizes.append(length.pop())
        whole = {}
        for name, arrays in columns.items():
            if len({(a.shape[1:], a.dtype.kind) for a in arrays}) > 1:
                raise bad(path, f"{name!r} of one shape and type", "several")
            whole[name] = np.concatenate(arrays)
    return kind, whole, np.repeat(np.array(ids, dtype=str), sizes)


def _decoded(path: Any, column: np.ndarray, codec: str) -> list[str]:
    if column.ndim != 1 or not all(isinstance(v, bytes) for v in column):
        raise bad(path, "strings, one per example", f"{column.dtype} {column.shape}")
    return [v.decode(codec, "replace") for v in column]


def tff(
    path: str | Path,
    *,
    task: str = "words",
    labels: str = "fine",
    vocabulary: int | Sequence[str] | Path = 10000,
    tags: int | Sequence[str] | Path = 500,
    length: int | None = None,
    buckets: int = 1,
    clients: int | Sequence[str] | None = None,
    dtype: Any = np.float32,
    valid: Number | None = None,
    test: Number | None = None,
    by: str = "examples",
    seed: Seed = 0,
) -> Dataset:
    """HDF5 of TensorFlow Federated: EMNIST, CIFAR-100, Shakespeare, StackOverflow.

    Only the clients asked for are read: StackOverflow has 342 477 of them.

    Args:
        path: `*_train.h5`, or a folder with one; `*_held_out.h5` beside it validates, `*_test.h5`
            tests.
        task: of StackOverflow: "words" predicts the next one, "tags" those of a bag of words.
        labels: of CIFAR-100: "fine" (100) or "coarse" (20).
        vocabulary: of StackOverflow: the words, a file of "word count" lines such as
            `stackoverflow.word_count`, or how many of the most frequent ones of the clients read.
        tags: the same of tags.
        length: of a sentence (default: 80 characters, 20 words).
        buckets: numbers for words that are not in the vocabulary.
        clients: the first so many of each part, or their names (default: all).
        dtype: of floats. EMNIST is floats in the file; for CIFAR-100 they are in [0, 1], and
            np.uint8 are its bytes.
        valid: share for validation, if the files have none (default: 0.15).
        test: share for the test, if the files have none (default: 0.15).
        by: "examples", or "clients" to share out whole clients.
        seed: a number or a NumPy generator, for the split.

    Returns:
        x is `[N, 28, 28, 1]` for EMNIST, whose paper is 1 and ink 0; `[N, 32, 32, 3]` for
        CIFAR-100; `[N, length]` tokens for the texts, whose y are the next ones, 0 where there is
        none: `sequence_cross_entropy(model, pad=0)`. For tags, x is `[N, V]` shares of words and
        y `[N, tags]` zeros and ones.

    Raises:
        ValueError: a truncated or wrong file; fields that disagree in length; an empty client; a
            label out of range.

    Source: the baselines of TensorFlow Federated, whose code was read.

    Deviations: clients of CIFAR-100's test, who are others under the same numbers, are "test 0" and
        so on. The vocabulary is in the order of the counts of the clients read.

    Example:
        >>> import h5py
        >>> with h5py.File("emnist_train.h5", "w") as file:
        ...     for writer in ("f0001_41", "f0002_12"):
        ...         group = file.create_group(f"examples/{writer}")
        ...         group["pixels"], group["label"] = np.ones((3, 28, 28), "f4"), np.arange(3)
        >>> found = data.tff("emnist_train.h5", valid=0, test=0)
        >>> found.names.tolist(), found.train["x"].shape
        (['f0001_41', 'f0002_12'], (6, 28, 28, 1))
    """
    path = Path(path)
    for name, value, known in (
        ("task", task, ("words", "tags")),
        ("labels", labels, ("fine", "coarse")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    files = {"train": path}
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if _SUFFIX.search(p.name))
        found = [p for p in found if "train" in p.name]
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise bad(path, "one file *_train.h5; name one if there are more", names)
        files["train"] = found[0]
    match = _SUFFIX.match(files["train"].name)
    if match and match[2] == "train":
        for word, part in (("test", "test"), ("held_out", "valid"), ("heldout", "valid")):
            other = files["train"].with_name(f"{match[1]}{word}{match[3]}")
            files |= {part: other} if other.exists() else {}
    tagged, more = task == "tags", []
    more = ["title", "tags"] if tagged else [] if labels == "fine" else ["coarse_label"]
    parts, kinds, tokens, classes, known_tags = {}, set(), None, None, ()
    for part, file in files.items():
        kind, column, ids = _h5(file, clients, more)
        kinds.add(kind)
        if len(kinds) > 1:
            raise bad(file, f"another file of {' or '.join(sorted(kinds - {kind}))}", kind)
        with reading(file, f"TFF ({kind})"):
            if kind in ("EMNIST", "CIFAR-100"):
                coarse = kind == "CIFAR-100" and labels == "coarse"
                x, y = column[_FIELDS[kind][0]], column["coarse_label" if coarse else "label"]
                side = (28, 28) if kind == "EMNIST" else (32, 32, 3)
                if x.shape[1:] != side or y.ndim != 1 or y.dtype.kind not in "iu":
                    found = f"{x.shape}, {y.dtype} {y.shape}"
                    raise bad(file, f"images {side} and integers", found)
                x = x[..., None] if kind == "EMNIST" else pixels(x, dtype)
                classes = 62 if kind == "EMNIST" else 20 if coarse else 100
                if kind == "EMNIST" and "digitsonly" in file.name:
                    classes = 10
                if kind == "CIFAR-100" and part == "test":
                    ids = np.char.add("test ", ids)
            elif kind == "Shakespeare":
                snippets = _decoded(file, column["snippets"], "latin1")  # a byte is a character
                tokens = tokens or text.Tokens(text.SHAKESPEARE, buckets)
                x, y, origin = text.characters(snippets, length or 80, tokens)
                ids = ids[origin]
            elif tagged:
                if not {"title", "tags"} <= set(column):
                    raise bad(file, "fields tokens, title and tags", sorted(column))
                body, title = (_decoded(file, column[k], "utf-8") for k in ("tokens", "title"))
                sentences = [f"{a} {b}".split() for a, b in zip(body, title)]
                marks = [t.split("|") for t in _decoded(file, column["tags"], "utf-8")]
                tokens = tokens or tokens_of(file, sentences, vocabulary)
                known_tags = known_tags or tokens_of(file, marks, tags).words
                x, y = text.bag(sentences, tokens.words), text.bag(marks, known_tags)
                y = (y > 0).astype(dtype)
            else:
                sentences = [t.split(" ") for t in _decoded(file, column["tokens"], "utf-8")]
                if tokens is None:
                    tokens = text.Tokens(tokens_of(file, sentences, vocabulary).words, buckets)
                x, y = text.words(sentences, tokens, length or 20)
        parts[part] = Part(x, y, ids, file)
    if tokens is not None:
        classes = None if tagged else tokens.size
    return assemble(
        files["train"],
        parts,
        Layout(dtype, classes, tagged, ("",)),
        valid=valid,
        test=test,
        by=by,
        seed=seed,
        vocabulary=tokens.words if tokens else (),
    )
