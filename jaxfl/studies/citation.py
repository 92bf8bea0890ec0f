"""What docstrings of algorithms say: their sections, citations, and the table of `docs`.

`python -m jaxfl.studies.citation` writes the table into docs/algorithms.md.
"""

import ast
import dataclasses
import inspect
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxfl.studies.config import FIELDS, Config
from jaxfl.studies.names import Call, component, parse
from jaxfl.studies.registry import made
from jaxfl.types import nearest

LABELS = (
    *("Use", "Args", "State", "Needs", "Sent", "Equals"),
    *("Raises", "Deviations", "Source", "Example"),
)
MARKERS = ("<!-- algorithms -->", "<!-- /algorithms -->")

_LABEL = re.compile(rf"^({'|'.join((*LABELS, 'Returns'))}):", re.MULTILINE)
_ARG = re.compile(r"^    (\w+):", re.MULTILINE)
_CLAUSE = re.compile(r';\s+(?=(?:[^"]*"[^"]*")*[^"]*$)')  # semicolons outside of quotes
_REFERENCE = re.compile(
    r'(?P<authors>[^"]+), "(?P<title>[^"]+)",? '
    r"(?P<venue>[^\"]+?),? (?P<year>\d{4})(?!\.?\d)(?P<rest>.*)"
)
_UNTITLED = re.compile(  # last names, a venue of one word, a year
    r"(?P<authors>[A-Z]\w+(?: et al\.|(?:, [A-Z]\w+)*)), "
    r"(?P<venue>[A-Za-z]+) (?P<year>\d{4})(?!\.?\d)(?P<rest>.*)"
)
_JOURNAL = re.compile(r"\b(IEEE T\w+|SIAM|Journal|Transactions|Letters|JMLR|TMLR|Automatica)\b")


class Reference(NamedTuple):
    """A published source, only with what is known of it."""

    authors: tuple[str, ...]
    title: str  # empty where the docstring has none
    venue: str
    year: int
    arxiv: str = ""

    @property
    def key(self) -> str:
        """First author, year and first long word of the title: `mcmahan2017communication`."""
        words = re.findall(r"[A-Za-z0-9]+", self.title or self.arxiv or self.venue)
        word = next((w for w in words if len(w) > 3), words[0])
        return re.sub(r"\W", "", self.authors[0] + str(self.year) + word).lower()

    def plain(self) -> str:
        """One line of text."""
        arxiv = f", arXiv:{self.arxiv}" if self.arxiv and self.venue != "arXiv" else ""
        venue = f"arXiv:{self.arxiv}" if self.venue == "arXiv" and self.arxiv else self.venue
        authors = ", ".join(self.authors).replace(", others", " et al")
        title = f' "{self.title}".' if self.title else ""
        return f"{authors}.{title} {venue}, {self.year}{arxiv}."

    def bibtex(self) -> str:
        """A BibTeX entry; authors by their last names, which is what sources list."""
        authors = " and ".join(f"{{{a}}}" if " " in a else a for a in self.authors)
        title = {"title": f"{{{self.title}}}"} if self.title else {}
        fields = {"author": authors, **title, "year": str(self.year)}
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
    """The parts of a docstring, every text but the example on one line.

    Args:
        alg: an algorithm, its class, a function that makes one, or its name; or anything else
            with a docstring.

    Returns:
        `summary`, `recurrence` (as it is set, or empty), then by lower-case label, in order, those
        of `LABELS` that it has; `args` is a dict from field to text.
    """
    head, *parts = _LABEL.split(text(_class(alg)))
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


def references(alg: Any, variants: Iterable[str] = ()) -> tuple[Reference, ...]:
    """The published sources in a docstring, in its order.

    Args:
        alg: as for `sections`.
        variants: where remarks name variants, `("icml")`, only those of one of these.
    """
    clauses = _CLAUSE.split(sections(alg).get("source", ""))
    found = [m for c in clauses if (m := _REFERENCE.match(c) or _UNTITLED.match(c))]
    said = [set(re.findall(r'"(\w+)"', m["rest"])) for m in found]
    if any(names.intersection(variants) for names in said):
        found = [m for m, names in zip(found, said) if not names or names.intersection(variants)]
    return tuple(map(_reference, found))


def cite(*used: Any) -> str:
    """How to cite jaxfl and what a run used: plain text, then BibTeX.

    Only what docstrings know appears: authors by their last names, no title where none is known.
    What nobody published is left out.

    Args:
        used: names, also with options (`"dsgd @ exponential"`), classes or instances of
            algorithms, networks, adversaries, compressors, models, data sets, partitioners;
            a `Config`, what `compare` returns or what `sweep` returns, with all that they name.

    Raises:
        ValueError: an unknown name, with the nearest ones.

    Example:
        >>> print(jaxfl.cite("fedprox(mu=0.1)", networks.ALIE(z=1.0)).partition("jaxfl:")[0])
        FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith. "Federated Optimization in
        Heterogeneous Networks". MLSys, 2020, arXiv:1812.06127.
        ALIE: Baruch, Baruch, Goldberg. NeurIPS, 2019.
    """
    from importlib.metadata import version

    title = "jaxfl: federated and decentralised learning as one XLA program"
    lines, entries = [], {}
    for thing, variants in dict.fromkeys(found for one in used for found in _used(one)):
        for reference in references(thing, variants):
            lines.append(f"{thing.__name__}: {reference.plain()}")
            entries[reference.key] = reference.bibtex()
    lines.append(f'jaxfl: The jaxfl developers. "{title}". Version {version("jaxfl")}.')
    own = {"author": "{The jaxfl developers}", "title": f"{{{title}}}", "version": version("jaxfl")}
    entries["jaxfl"] = _entry("software", "jaxfl", own)
    return "\n".join(lines) + "\n\n" + "\n\n".join(entries.values()) + "\n"


def _used(thing: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The classes and functions whose docstrings say what a thing and its parts are; variants."""
    if isinstance(thing, str):
        yield from _of_names(thing, None)
    elif isinstance(thing, Config):
        yield from _of_settings(dataclasses.asdict(thing))
    elif isinstance(config := getattr(thing, "config", None), Config):  # a comparison
        yield from _used(config)
    elif isinstance(text := getattr(thing, "attrs", {}).get("config"), str):  # of a sweep
        over = json.loads(thing.attrs.get("over", "{}"))
        points = over if isinstance(over, list) else [over]
        settings = json.loads(text)
        if any("algorithm" in point for point in points):
            settings.pop("algorithms", None)
        for point in points:
            yield from _of_settings(settings | point)
    elif inspect.isfunction(thing) or isinstance(thing, type):
        yield _class(thing), ()
    else:
        named = _registries()  # of data sets and models the name is what is left
        kind = {"Dataset": "data", "Model": "models"}.get(type(thing).__name__, "")
        fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
        parts = [getattr(thing, field.name, None) for field in fields]
        home = named.get(kind, {}).get(getattr(thing, "name", ""), type(thing))
        yield home, tuple(part for part in parts if isinstance(part, str))
        for part in parts:
            if dataclasses.is_dataclass(part) and type(part).__module__.startswith("jaxfl."):
                yield from _used(part)


def _of_settings(settings: dict[str, Any]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    kinds = {"algorithm": "algorithms"} | {k: f.metadata["kind"] for k, f in FIELDS.items()}
    kinds |= {name: "components" for name in settings if name not in kinds}  # of algorithms
    graphs = False
    for name, kind in sorted(kinds.items(), key=lambda pair: pair[1] != "algorithms"):
        values = settings.get(name) or ()
        values = values if isinstance(values, list | tuple) else [values]
        if kind == "components":
            values = [v for v in values if isinstance(component(v), Call)]
        for value in values:
            if name == "adversary" and not settings.get("byzantine"):
                continue
            if name in ("graph", "weights") and not graphs:
                continue
            if kind and isinstance(value, str) and not (name == "data" and os.path.exists(value)):
                yield from _of_names(value, kind)
            if kind == "algorithms" and isinstance(value, str) and "@" not in value:
                needs = getattr(_class(parse(value).name), "needs", None)
                graphs |= needs is not None and not needs.net.server


def _of_names(text: str, kind: str | None) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Of a name with options, whose options and graph may be names too."""
    call = parse(text)
    named = _registries()
    for known in [named[kind]] if kind else named.values():
        if call.name in known:
            thing = known[call.name]
            usual = {k: p.default for k, p in inspect.signature(thing).parameters.items()}
            variants = (usual | call.options).values()
            yield _class(thing), tuple(v for v in variants if isinstance(v, str))
            break
    else:
        known = [name for one in ([named[kind]] if kind else named.values()) for name in one]
        raise ValueError(f"no {kind or 'algorithm'} {call.name!r}{nearest(call.name, known)}")
    for value in call.options.values():
        if isinstance(value, Call) and value.name in named["components"]:
            yield named["components"][value.name], ()
    if call.on is not None and call.on.name in named["graphs"]:
        yield named["graphs"][call.on.name], ()


def _registries() -> dict[str, dict[str, Any]]:
    from jaxfl import data
    from jaxfl.studies.registry import registries

    named = registries()
    return named | {"data": named["data"] | data.FORMATS}


def table(algs: Iterable[Any] | None = None) -> str:
    """All algorithms as a markdown table, from their docstrings.

    Args:
        algs: algorithms or makers of them; by default those of `jaxfl.algorithms.ALGORITHMS`.
    """
    if algs is None:
        from jaxfl.algorithms import ALGORITHMS

        algs = ALGORITHMS.values()
    names: dict[Any, list[str]] = {}
    for alg in algs:
        cls: Any = _class(alg)
        makers = names.setdefault(cls, [])
        if inspect.isfunction(alg) and cls is not alg:
            makers.append(f"`{alg.__name__}`")
    rows = [
        ("Algorithm", "What it is", "Needs", "Sent per client and round, in bits", "Published"),
        ("---",) * 5,
    ]
    for cls, makers in names.items():
        part = sections(cls)
        rows.append(
            (
                f"`{cls.__name__}`" + (f" ({', '.join(makers)})" if makers else ""),
                part["summary"],
                re.split(r"[;.]| \(", part["needs"])[0],
                re.split(r",? (?:bits )?per |\.$", part["sent"])[0],
                ", ".join(dict.fromkeys(f"{r.venue} {r.year}" for r in references(cls))),
            )
        )
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def rewrite(text: str) -> str:
    """A page with its table of algorithms made anew between `MARKERS`.

    Raises:
        ValueError: no markers.
    """
    before, start, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not end:
        raise ValueError(f"text must hold {MARKERS[0]} and then {MARKERS[1]}, the table between")
    return f"{before}{start}\n\n{table()}\n\n{end}{after}"


def _class(alg):
    """What describes an algorithm, its class, a function that makes one, or its name.

    The class; or the function, where it says a source of its own.
    """
    if isinstance(alg, str):
        from jaxfl.algorithms import ALGORITHMS

        if alg.lower() not in ALGORITHMS:
            raise ValueError(f"no algorithm {alg!r}{nearest(alg.lower(), list(ALGORITHMS))}")
        alg = ALGORITHMS[alg.lower()]
    if not isinstance(alg, type) and not inspect.isfunction(alg):
        return type(alg)
    return alg if re.search("^ *Source:", text(alg), re.MULTILINE) else made(alg)


def text(thing: Any) -> str:
    """A docstring; from the source where `python -OO` has taken it out."""
    if sys.flags.optimize < 2:
        return inspect.getdoc(thing) or ""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):  # of something without a source
        return ""
    found = next((n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)), tree)
    return ast.get_docstring(found) or ""


def _line(text):
    return " ".join(text.split())


def _reference(match):
    arxiv = re.search(r"arXiv (\d{4}\.\d{4,5})", match["rest"])
    names = match["authors"].replace(" et al.", ", others").split(",")
    return Reference(
        tuple(name.strip() for name in names),
        match.groupdict().get("title") or "",
        match["venue"],
        int(match["year"]),
        arxiv[1] if arxiv else "",
    )


def _entry(kind, key, fields):
    body = "".join(f"  {k} = {{{value}}},\n".replace(" & ", r" \& ") for k, value in fields.items())
    return f"@{kind}{{{key},\n{body}}}"


def main(path: str | Path | None = None) -> None:
    """Rewrites the table of a page, by default that of the source tree."""
    page = Path(path) if path else Path(__file__).parents[2] / "docs" / "algorithms.md"
    page.write_text(rewrite(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
