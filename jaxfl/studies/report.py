"""One page of a sweep or a comparison: tables, figures, configuration, provenance, citations."""

import base64
import contextlib
import html
import io
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfl import metrics
from jaxfl.plots import style
from jaxfl.runs import folder as files
from jaxfl.studies import results
from jaxfl.studies.config import Config

if TYPE_CHECKING:
    import xarray

_MOST = 6  # figures of a kind
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #fff; --line: #d8dee4;
  --shade: #f6f8fa }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4af; --paper: #14171a;
  --line: #353b42; --shade: #1d2125 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem } h3 { font-size: 1rem; margin: 1.6rem 0 .6rem }
p { margin: .4rem 0 } .soft, figcaption { color: var(--soft); font-size: .9rem }
.wide { overflow-x: auto; max-height: 40rem; margin: .6rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
th { white-space: normal; vertical-align: bottom }
th:first-child, td:first-child, .words td, .words th { text-align: left }
.words td:last-child { white-space: normal; overflow-wrap: anywhere }
.words td { vertical-align: top }
thead th { position: sticky; top: 0; background: var(--paper) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .8rem; line-height: 1.4;
  background: var(--shade); font-size: .82rem; border-radius: 6px }
.figures { display: grid; gap: 1rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)) }
figure { margin: 0 } figure.broad { grid-column: 1 / -1; overflow-x: auto }
img { display: block; width: 100%; height: auto; background: #fff; padding: .4rem;
  border-radius: 6px }
figure:not(.broad) img { max-width: 26rem } figure.broad img { min-width: 38rem }
"""


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes one page of a sweep or a comparison, by default `report.html` in its folder.

    The page stands alone: no scripts, and nothing that is loaded from elsewhere.

    Args:
        folder: of `jaxfl.sweep(out=)` or `jaxfl.compare(out=)`; it is only read if `out` is given.
        out: the page.

    Returns:
        Path of the page.

    Raises:
        ValueError: the folder is of neither, the sweep has not ended, or the results are damaged.
        OSError: the page cannot be written.

    Example:
        >>> small = dict(clients=3, cohort=2, minimum=1, steps=2, rounds=8, every=4)
        >>> over = {"lr": [0.03, 0.3, 3.0], "seed": 2}
        >>> ds = jaxfl.sweep(over, out="folder", data="iris", model="logistic", **small)
        >>> jaxfl.report("folder").name
        'report.html'
    """
    folder = Path(folder)
    ds = _read(folder)
    path = Path(out) if out is not None else folder / "report.html"
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OSError(
            f"cannot write the page {str(path)!r}; choose another place: `out='report.html'`"
        )
    page = _of_sweep(folder, ds) if "over" in ds.attrs else _of_comparison(folder, ds)
    files.text(path, page)
    return path


def _read(folder):
    path = folder / "results.nc"
    if not path.is_file():
        how = "name a folder that `jaxfl compare` or `jaxfl sweep` wrote: `jaxfl report results`"
        if (folder / "sweep.toml").is_file():
            how = f"its sweep has not ended: `jaxfl sweep {shlex.quote(str(folder))}`"
        raise ValueError(f"there are no results in {str(folder)!r}; {how}")
    try:
        ds = files.read_netcdf(path)
        for name in ("provenance", *(["over"] if "over" in ds.attrs else [])):
            if not isinstance(json.loads(ds.attrs[name]), dict | list):
                raise ValueError(f"{name} is no table")
        Config.make(**json.loads(ds.attrs["config"]))
        if "round" not in ds.dims:
            raise ValueError("no dimension 'round'")
        style.variable(ds, ds.attrs["metric"])
    except Exception as error:  # whatever a library says of a broken file
        raise ValueError(
            f"cannot read {str(path)!r}: {str(error) or type(error).__name__}; it is damaged, or "
            "not of `jaxfl compare` or `jaxfl sweep`: run that again"
        ) from error
    return ds


def _of_comparison(folder, ds):
    from jaxfl.studies.comparison import Comparison

    config = Config.make(**json.loads(ds.attrs["config"]))
    comparison = Comparison(config, ds)
    headers, rows = comparison.cells()
    names = [str(a) for a in ds["algorithm"].values]
    title = "Comparison of " + (f"{len(names)} algorithms" if len(names) > 1 else names[0])
    about = _about(json.loads(ds.attrs["provenance"]), folder / "results.nc")
    parts = [
        f"<p>{_escape(_circumstances(config, ()))}</p>",
        _table(headers, rows),
        *(f'<p class="soft">{_escape(note)}</p>' for note in comparison.notes()),
        _figures(_pictures(style.results(comparison), [])),
        _configuration(folder, "config.toml", config, about.get("objects", {})),
        _provenance(about),
        _citations(config, config.algorithms),
    ]
    return _page(title, parts)


def _of_sweep(folder, ds):
    config, over = (json.loads(ds.attrs[k]) for k in ("config", "over"))
    config, ds = Config.make(**config), style.results(ds)
    dims = style.swept(ds[style.metric(ds)])
    tuned = results._hyper(ds)
    names = [d for d in dims if d not in ("algorithm", "point")]
    names += [str(k) for k in ds.coords if ds[k].dims == ("point",) and k != "point"]
    title = "Sweep of " + (", ".join(names) or "seeds")
    about = json.loads(ds.attrs["provenance"])
    if (folder / "provenance.json").is_file():  # it knows the end
        about = files.unsealed(folder / "provenance.json")
    about = _about(about, folder / "provenance.json")
    if "point" in dims:
        ds = ds.assign_coords(point=style.names(ds, "point"))
    summary = results.Summary(ds)
    axes = [(d, (", ", "; ")[d == "point"].join(style.names(ds, d))) for d in dims]
    axes.append(("seeds", ", ".join(style.plain(ds["seed"].values))))
    parts = [
        f"<p>{_escape(_circumstances(config, dims))}</p>",
        _table(("swept", "values"), axes, "words"),
        "<h2>Results</h2>",
        _table(*summary.cells()),
        *(f'<p class="soft">{_escape(note)}</p>' for note in [*summary.notes(), _ends(ds)]),
        _figures(_pictures(ds, tuned)),
        _configuration(folder, "sweep.toml", config, about.get("objects", {}), over),
        _provenance(about),
        _citations(ds, [str(a) for a in np.ravel(ds.get("algorithm", config.algorithms))]),
    ]
    return _page(title, parts)


def _about(about, path):
    """A provenance of the form that jaxfl writes."""
    sessions = about.get("sessions", []) if isinstance(about, dict) else None
    if not isinstance(sessions, list) or not all(isinstance(s, dict) for s in sessions):
        raise ValueError(f"the provenance in {str(path)!r} is damaged; run the sweep again")
    return about


def _circumstances(config, swept):
    """What is the same for all runs, in a line."""
    said = {
        "data": f"{config.data}",
        "clients": f"{config.clients} clients",
        "partition": f"{config.partition} partition",
        "alpha": f"alpha {config.alpha:g}" if config.partition == "dirichlet" else "",
        "model": config.model,
        "rounds": f"{config.rounds} rounds",
        "byzantine": f"{config.byzantine} Byzantine ({config.adversary})" * bool(config.byzantine),
    }
    return ", ".join(v for k, v in said.items() if v and k not in swept) + "."


def _best(ds, over):
    return results.best(ds, over, quiet=True)


def _ends(ds):
    """How the runs ended."""
    ended = ds["status"].values
    ends = ("ran to the end", "reached their target", "lost patience", "diverged")
    counts = [(int((ended == i).sum()), words) for i, words in enumerate(ends)]
    return f"{ended.size} runs: " + ", ".join(f"{n} {w}" for n, w in counts if n) + "."


# Figures -----------------------------------------------------------------------------------------


def _pictures(
    ds: "xarray.Dataset", tuned: Sequence[str]
) -> Iterator[tuple[str, Iterable[tuple[str, Any]]]]:
    """What there is to see, by kind: words, then captions and axes."""
    from jaxfl import plots

    best = _best(ds, tuned)
    score, dims = style.metric(ds), style.swept(ds[style.metric(ds)])
    others = style.swept(best[score])
    by = "algorithm" if "algorithm" in dims else others[0] if others else ""
    lines = [by] if by else []
    at_best = ", each at its best setting" if tuned else ""
    curves: dict[str, Any] = {"against": ("rounds",), "width": 3.3}
    if others == lines:
        curves = {"width": 7.0}
    spread = "95% t bands over seeds" if ds.sizes["seed"] >= metrics.FEWEST else "ranges of seeds"
    for name, words in ((score, "all labels"), (f"own_{score}", "clients' own labels")):
        if name in best:
            draw = lambda part, name=name: plots.learning_curves(part, by=by, name=name, **curves)[
                0
            ]
            yield f"Learning curves on {words}{at_best}, with {spread}", _each(best, lines, draw)
    for x in others:
        if x in ds.coords and x not in ("algorithm", "point") and ds[x].dtype.kind in "fiu":
            keep = [x, *(["algorithm"] if "algorithm" in others else [])]
            draw = lambda part, x=x, keep=keep: plots.robustness(part, x, by="".join(keep[1:]))
            about = f"Final score on all labels against {style.dimension(ds, x)}{at_best}"
            yield about, _each(best, keep, draw)
    grid = [*tuned, *(d for d in others if d != "algorithm")][:2]
    grid = [*grid, "algorithm"] if len(grid) == 1 and "algorithm" in dims else grid
    if len(grid) == 2:
        part = _best(ds, [d for d in tuned if d not in grid])
        about = "Final validation scores, means over seeds"
        yield about, _each(part, grid, lambda part: plots.heatmap(part, *grid))
    if "megabytes" in ds:
        part = _best(ds, [d for d in tuned if d == "lr"])
        points = [d for d in style.swept(part[score]) if d in ("algorithm", "point", *tuned)]
        if points:
            about = (
                "Scores on all labels and what they cost; the line joins what nothing beats in both"
            )
            yield about, _each(part, points, plots.pareto)
    if f"client_{score}" in ds:
        draw = lambda part: plots.ecdf(part, by=by)
        yield f"Scores of clients on their own labels, all seeds{at_best}", _each(best, lines, draw)
    if "consensus" in ds:
        draw = lambda part: plots.consensus(part, by=by)
        yield f"Distance between the models of clients{at_best}", _each(best, lines, draw)


def _each(ds, keep, draw):
    """Captions and axes at the first few values of every dimension that is not kept."""
    others = [d for d in style.swept(ds[style.metric(ds)]) if d not in keep]
    names = {d: style.names(ds, d) for d in others}
    places = itertools.product(*(range(ds.sizes[d]) for d in others))
    for place in itertools.islice(places, _MOST):
        here = dict(zip(others, place))
        with contextlib.suppress(style.Nothing):
            caption = ", ".join(f"{d} {names[d][i]}" for d, i in here.items())
            yield caption, draw(ds.isel(here))
    if (more := int(np.prod([ds.sizes[d] for d in others])) - _MOST) > 0:
        yield f"and {more} more, not drawn", None


def _figures(kinds):
    """Figures of a kind under a heading; kinds of a single one side by side, with captions."""
    parts, singles = ["<h2>Figures</h2>"], []
    grid = lambda shown: '<div class="figures">\n' + "\n".join(shown) + "\n</div>"
    for about, pictures in kinds:
        pictures = [(caption, *_image(ax)) for caption, ax in pictures]
        if len(pictures) == 1 and not pictures[0][0]:
            singles.append(_figure(about, *pictures[0]))
        elif pictures:
            parts += [grid(singles)] if singles else []
            shown = (_figure(about, *picture) for picture in pictures)
            parts, singles = [*parts, f"<h3>{_escape(about)}</h3>", grid(shown)], []
    return "\n".join([*parts, *([grid(singles)] if singles else [])])


def _image(ax):
    """A picture as an address that holds it, and whether it is broad; "" if there is none."""
    import matplotlib as mpl
    from matplotlib import pyplot

    if ax is None:
        return "", False
    buffer, figure = io.BytesIO(), ax.figure.get_figure(root=True)
    with mpl.rc_context(style.STYLE | {"svg.hashsalt": "jaxfl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/svg+xml;base64,{data}", figure.get_figwidth() > 4


def _figure(about, caption, source, broad):
    if not source:
        return f'<p class="soft">{_escape(caption)}</p>'
    words = _escape(f"{about}: {caption}" if caption else about)
    return (
        f'<figure{" class=broad" if broad else ""}><img alt="{words}" src="{source}">'
        f"<figcaption>{_escape(caption or about + '.')}</figcaption></figure>"
    )


# The page ----------------------------------------------------------------------------------------


def _escape(text):
    return html.escape(str(text))


def _table(headers, rows, kind=""):
    cells = lambda tag, row: "".join(f"<{tag}>{_escape(c)}</{tag}>" for c in row)
    head = f"<thead><tr>{cells('th', headers)}</tr></thead>\n" if headers else ""
    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{kind}">\n{head}<tbody>\n{body}\n</tbody></table></div>'
    )


def _configuration(folder, name, config, objects, over=None):
    """The file that repeats it, or what the results know of it."""
    try:
        text = (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = (f"# over = {json.dumps(over)}\n" if over else "") + config.to_toml()
    command = "sweep" if over is not None else "compare --config"
    path = shlex.quote(str(folder / name))
    again = f"To repeat it: jaxfl {command} {path} --out {shlex.quote(f'{folder}-again')}"
    if own := [k for k, v in objects.items() if v]:
        again = (
            f"The {' and '.join(own)} came from Python as objects, which this file does not hold: "
            "to repeat it, give the same ones again."
        )
    return (
        f'<h2>Configuration</h2>\n<p class="soft">{_escape(again)}</p>\n<pre>{_escape(text)}</pre>'
    )


def _provenance(about):
    """Where the numbers come from; of a sweep that was resumed, every time."""
    sessions = about.get("sessions") or [{k: v for k, v in about.items() if k != "objects"}]
    rows = []
    for i, session in enumerate(sessions):
        if len(sessions) > 1:
            rows.append((f"session {i + 1} of {len(sessions)}", ""))
        for name, value in session.items():
            if name == "versions":
                value = json.loads(value) if isinstance(value, str) else value
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            if value not in ("", None):
                rows.append((name, value))
    return "<h2>Provenance</h2>\n" + _table((), rows, "words") if rows else ""


def _citations(used, algorithms):
    """Whom to cite; an algorithm of one's own, which only its process knows, is named."""
    from jaxfl.algorithms import ALGORITHMS
    from jaxfl.studies.citation import cite

    names = dict.fromkeys(re.split(r"[(@ ]", a.strip().lower())[0] for a in algorithms)
    own = [name for name in names if name not in ALGORITHMS]
    text = cite(*(name for name in names if name in ALGORITHMS)) if own else cite(used)
    note = f'<p class="soft">Not known here: {_escape(", ".join(own))}.</p>\n' if own else ""
    return f"<h2>How to cite</h2>\n{note}<pre>{_escape(text)}</pre>"


def _page(title, parts):
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )
