"""A sweep of a thousand runs, as a user starts it: `jaxfl sweep`, its time, memory and heat map.

25 learning rates x 5 Dirichlet partitions x 8 seeds of FedAvg on scikit-learn's digits, as one
program. What a run costs in a sweep and alone is part F of versus.py.

Run: python benchmarks/sweep.py
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from common import ROOT, record
from compare import timed

import jaxfl
from jaxfl import plots, results
from jaxfl.studies.sweep import Space

SETTINGS = {"rounds": 60, "every": 10, "clients": 20, "cohort": 10, "model": "mlp(hidden=[32])"}
OVER = {
    "lr": [float(f"{10**e:.2g}") for e in np.linspace(-2.5, 0.9, 25)],
    "alpha": [0.03, 0.1, 0.3, 1.0, 10.0],
    "seed": 8,
}


def main():
    space = Space.make(OVER, **SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "thousand.toml")
        file.write_text(space.toml())
        env = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        command = [sys.executable, "-m", "jaxfl.cli", "sweep", str(file)]
        cold = timed(command, {**os.environ, **env})
        ds = jaxfl.sweep(OVER, out=Path(folder, "thousand"), **SETTINGS)
    runs = int(np.prod([ds.sizes[k] for k in ("lr", "alpha", "seed")]))
    with warnings.catch_warnings(record=True) as edges:
        warnings.simplefilter("always")
        chosen = results.best(ds)
    test = results.interval(chosen)
    found = {
        "runs": runs,
        "programs": len(jaxfl.plan(OVER, **SETTINGS).groups),
        "cold": cold,
        "seconds per run": cold["seconds"] / runs,
        "diverged": int((ds.status == 3).sum()),
        "edge of the grid": [str(w.message) for w in edges],
        "best": {
            str(a): {
                "lr": float(chosen.lr.sel(alpha=a)),
                "test accuracy": float(test["mean"].sel(alpha=a)),
                "half a 95% interval": float(test["half"].sel(alpha=a)),
            }
            for a in ds.alpha.values
        },
    }
    ax = plots.heatmap(ds, "lr", "alpha")
    ax.figure.savefig(ROOT / "benchmarks" / "results" / "sweep.png", dpi=200)
    record("sweep", found)


if __name__ == "__main__":
    main()
