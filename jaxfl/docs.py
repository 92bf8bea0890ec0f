"""What docstrings of algorithms say: their sections, citations, and the README's table.

`python -m jaxfl.docs` writes the table into the README.
"""

import inspect
import re
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jaxfl.types import nearest

LABELS = (
    *("Use", "Args", "State", "Needs", "Sent", "Equals"),
    *("Raises", "Deviations", "Source", "Example"),
)
MARKERS = ("<!-- algorithms -->", "<!-- /algorithms -->")

_LABEL = re.compile(rf"^({'|'.join(LABELS)}):", re.MULTILINE)
_ARG = re.compile(r"^    (\w+):", re.MULTILINE)
_CLAUSE = re.compile(r';\s+(?=(?:[^"]*"[^"]*")*[^"]*$)')  # semicolons outside of quotes
_REFERENCE = re.compile(
    r'(?P<authors>[^"]+), "(?P<title>[^"]+)",? '
    r"(?P<venue>[^\"]+?),? (?P<year>\d{4})(?!\.?\d)(?P<rest>.*)"
)
_JOURNAL = re.compile(r"\b(IEEE T\w+|SIAM|Journal|Transactions|Letters|JMLR|TMLR|Automatica)\b")


class Reference(NamedTuple):
    """A published source, only with what is known of it."""

    authors: tuple[str, ...]
    title: str
    venue: str
    year: int
    arxiv: str = ""

    @property
    def key(self) -> str:
        """First author, year and first long word of the title: `mcmahan2017communication`."""
        words = re.findall(r"[A-Za-z0-9]+", self.title)
        word = next((w for w in words if len(w) > 3), words[0])
        return re.sub(r"\W", "", self.authors[0] + str(self.year) + word).lower()

    def plain(self) -> str:
        """One line of text."""
        arxiv = f", arXiv:{self.arxiv}" if self.arxiv and self.venue != "arXiv" else ""
        venue = f"arXiv:{self.arxiv}" if self.venue == "arXiv" and self.arxiv else self.venue
        return f'{", ".join(self.authors)}. "{self.title}". {venue}, {self.year}{arxiv}.'

    def bibtex(self) -> str:
        """A BibTeX entry; authors by their last names, which is what sources list."""
        authors = " and ".join(f"{{{a}}}" if " " in a else a for a in self.authors)
        fields = {"author": authors, "title": f"{{{self.title}}}", "year": str(self.year)}
        if self.venue == "arXiv":
            kind = "misc"
        elif _JOURNAL.search(self.venue):
            kind, fields["journal"] = "article", self.venue
        else:
            kind, fields["booktitle"] = "inproceedings", self.venue
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archiveprefix": "arXiv"}
        return _entry(kind, self.key, fields)


def sections(alg: Any) -> dict[str, Any]:
    """The parts of an algorithm's docstring, every text but the example on one line.

    Args:
        alg: an algorithm, its class, a function that makes one, or its name.

    Returns:
        `summary`, `recurrence` (as it is set, or empty), then by lower-case label, in order, those
        of `LABELS` that it has; `args` is a dict from field to text.
    """
    head, *parts = _LABEL.split(_docstring(alg))
    summary, _, recurrence = head.strip().partition("\n\n")
    found: dict[str, Any] = {"summary": _line(summary), "recurrence": recurrence.strip()}
    for label, body in zip(parts[::2], parts[1::2], strict=True):
        if label == "Args":
            _, *pairs = _ARG.split(body)
            found["args"] = {n: _line(t) for n, t in zip(pairs[::2], pairs[1::2], strict=True)}
        elif label == "Example":
            found["example"] = inspect.cleandoc(body)
        else:
            found[label.lower()] = _line(body)
    return found


def references(alg: Any) -> tuple[Reference, ...]:
    """The published sources of an algorithm, in the order of its docstring."""
    found = (_REFERENCE.match(c) for c in _CLAUSE.split(sections(alg).get("source", "")))
    return tuple(_reference(m) for m in found if m)


def cite(*algs: Any) -> str:
    """How to cite algorithms and jaxfl: plain text, then BibTeX.

    Only fields that the docstrings know appear, and authors by their last names.

    Args:
        algs: algorithms, their classes or their names; without any, jaxfl alone.

    Raises:
        ValueError: an unknown name, with the nearest ones.

    Example:
        >>> print(jaxfl.cite("dadao").partition(".")[0])
        DADAO: Nabli, Oyallon
    """
    from jaxfl import __version__

    title = "jaxfl: federated and decentralised learning as one XLA program"
    lines, entries = [], {}
    for alg in dict.fromkeys(map(_class, algs)):
        for reference in references(alg):
            lines.append(f"{alg.__name__}: {reference.plain()}")
            entries[reference.key] = reference.bibtex()
    lines.append(f'jaxfl: The jaxfl developers. "{title}". Version {__version__}.')
    own = {"author": "{The jaxfl developers}", "title": f"{{{title}}}", "version": __version__}
    entries["jaxfl"] = _entry("software", "jaxfl", own)
    return "\n".join(lines) + "\n\n" + "\n\n".join(entries.values()) + "\n"


def table(algs: Iterable[Any] | None = None) -> str:
    """All algorithms as a markdown table, from their docstrings.

    Args:
        algs: algorithms or makers of them; by default those of `jaxfl.algorithms.ALGORITHMS`.
    """
    if algs is None:
        from jaxfl.algorithms import ALGORITHMS

        algs = ALGORITHMS.values()
    names: dict[type, list[str]] = {}
    for alg in algs:
        made = names.setdefault(_class(alg), [])
        if inspect.isfunction(alg):
            made.append(f"`{alg.__name__}`")
    rows = [
        ("Algorithm", "What it is", "Needs", "Sent per client and round, in bits", "Published"),
        ("---",) * 5,
    ]
    for cls, made in names.items():
        part = sections(cls)
        rows.append(
            (
                f"`{cls.__name__}`" + (f" ({', '.join(made)})" if made else ""),
                part["summary"],
                re.split(r"[;.]| \(", part["needs"])[0],
                re.split(r",? (?:bits )?per |\.$", part["sent"])[0],
                ", ".join(dict.fromkeys(f"{r.venue} {r.year}" for r in references(cls))),
            )
        )
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def rewrite(text: str) -> str:
    """A README with its table of algorithms made anew between `MARKERS`.

    Raises:
        ValueError: no markers.
    """
    before, start, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not end:
        raise ValueError(f"text must hold {MARKERS[0]} and then {MARKERS[1]}, the table between")
    return f"{before}{start}\n\n{table()}\n\n{end}{after}"


def _class(alg):
    """The class behind an instance, a class, a function that makes one, or a name."""
    if isinstance(alg, str):
        from jaxfl.algorithms import ALGORITHMS

        if alg.lower() not in ALGORITHMS:
            raise ValueError(f"no algorithm {alg!r}{nearest(alg.lower(), list(ALGORITHMS))}")
        alg = ALGORITHMS[alg.lower()]
    if inspect.isfunction(alg):
        return typing.get_type_hints(alg)["return"]
    return alg if isinstance(alg, type) else type(alg)


def _docstring(alg):
    return inspect.getdoc(_class(alg)) or ""


def _line(text):
    return " ".join(text.split())


def _reference(match):
    arxiv = re.search(r"arXiv (\d{4}\.\d{4,5})", match["rest"])
    authors = tuple(a.strip() for a in match["authors"].split(","))
    return Reference(
        authors, match["title"], match["venue"], int(match["year"]), arxiv[1] if arxiv else ""
    )


def _entry(kind, key, fields):
    body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{body}}}"


def main(path: str | Path | None = None) -> None:
    """Rewrites the table of a README, by default that of the source tree."""
    readme = Path(path) if path else Path(__file__).parents[1] / "README.md"
    readme.write_text(rewrite(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
