"""Readers of files and of configurations under thousands of mutants: what becomes of them.

Every mutant of a right file (bytes, and what is compressed in them, changed, lost, moved, repeated,
replaced by awkward words) is either read as a valid data set or refused by an error that names the
file: never another exception, a warning, a hang or a huge allocation (`tests/fuzzing.py`).

And sets whose parts do not fit: columns, types, ids, labels and missing cells that differ between
train and test, other encodings, links out of HDF5. Such a set is refused, or every value is that of
its cells (`tests/fuzzing_parts.py`); anything else counts as silent, and there must be none.

    python benchmarks/fuzz.py --examples 3000 --parts 8000
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import common
import fuzzing
import fuzzing_parts
import test_files
import test_fuzz
from hypothesis import HealthCheck, Phase, given, settings, strategies

OUTCOMES = ("refused", "right", "silent", "skipped")  # the last: a format cannot say such a thing
QUIET = {
    "deadline": None,
    "database": None,
    "derandomize": False,
    "phases": [Phase.explicit, Phase.generate, Phase.shrink],
    "suppress_health_check": list(HealthCheck),
}


def fuzz(rule, examples: int) -> dict:
    """Counts of outcomes of `rule(draw)`, seconds in all and of the slowest."""
    counts, slowest, start = Counter(), 0.0, time.time()

    @settings(max_examples=examples, **QUIET)
    @given(strategies.data())
    def run(draw):
        nonlocal slowest
        began = time.time()
        counts[rule(draw.draw)] += 1
        slowest = max(slowest, time.time() - began)

    try:
        run()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        print(f"WRONG: {type(error).__name__}: {str(error)[:2000]}")
        raise
    return {**counts, "seconds": round(time.time() - start, 1), "slowest": round(slowest, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=3000, help="mutants of each kind")
    parser.add_argument("--parts", type=int, default=8000, help="sets of parts of each format")
    parser.add_argument("--only", nargs="*", help="kinds; all by default")
    options = parser.parse_args()
    found = {}
    for kind in test_files.KINDS:
        if options.only and kind not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            case = test_fuzz.case(kind, Path(folder))
            rule = lambda draw, case=case: fuzzing.judge(case, *draw(fuzzing.mutants(case)))
            found[kind] = fuzz(rule, options.examples)
        print(kind, found[kind], flush=True)
    for name, rule in test_fuzz.RULES.items():
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[name] = fuzz(lambda draw, f=Path(folder), r=rule: r(draw, f), options.examples)
        print(name, found[name], flush=True)
    parts = {}
    for kind in fuzzing_parts.FORMATS:
        if options.only and f"parts {kind}" not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:

            def rule(draw, kind=kind, folder=Path(folder)):
                world = draw(fuzzing_parts.worlds(kind))
                said, why = fuzzing_parts.verdict(world, kind, folder)
                if said == "silent":
                    print(f"SILENT: {kind}: {why[:1000]}\n{world}", flush=True)
                return said

            parts[kind] = dict.fromkeys(OUTCOMES, 0) | fuzz(rule, options.parts)
        print("parts", kind, parts[kind], flush=True)
    total = {k: sum(counts.get(k, 0) for counts in found.values()) for k in ("read", "refused")}
    judged = {k: sum(counts[k] for counts in parts.values()) for k in OUTCOMES}
    print(total, judged)
    if not options.only:  # any other outcome has ended the script with its traceback
        sizes = {"examples": options.examples, "parts": options.parts}
        totals = {"total": total, "total of parts": judged}
        common.record("fuzz", {**sizes, **totals, "kinds": found, "parts by format": parts})
    if judged["silent"]:
        sys.exit(f"{judged['silent']} sets were read as what they do not say")


if __name__ == "__main__":
    main()
