"""Readers of files and of configurations under thousands of mutants: what becomes of them.

Every mutant of a right file (bytes, and what is compressed in them, changed, lost, moved, repeated,
replaced by awkward words) is either read as a valid data set or refused by an error that names the
file: never another exception, a warning, a hang or a huge allocation (`tests/fuzzing.py`).

    python benchmarks/fuzz.py --examples 3000
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
import test_files
import test_fuzz
from hypothesis import HealthCheck, Phase, given, settings, strategies

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
    total = {k: sum(counts.get(k, 0) for counts in found.values()) for k in ("read", "refused")}
    if not options.only:  # any other outcome has ended the script with its traceback
        common.record("fuzz", {"examples": options.examples, "total": total, "kinds": found})


if __name__ == "__main__":
    main()
