"""FedAvg with its parts, in one sweep: three aggregators, two compressors, privacy, attackers.

One of ten clients sends its change with the sign turned and ten times as large. A part that is no
sum cannot be private: the sum is what a Gaussian mechanism protects. The table says so.

Run: python benchmarks/parts.py
"""

import itertools

import numpy as np
from common import record

import jaxfl
from jaxfl.algorithms import FedAvg
from jaxfl.components import Gaussian, epsilon
from jaxfl.networks import Uniform

CLIENTS, COHORT, ROUNDS, DELTA = 90, 60, 100, 1e-3
AGGREGATORS = ("mean", "median", "multikrum(f=10)")
COMPRESSORS = ("identity", "ef(topk(0.1))")
MECHANISM = dict(size=float(COHORT), clip=1.0, noise=1.0)
PRIVACIES = ("noprivacy", f"gaussian(size={COHORT}.0, clip=1.0, noise=1.0)")
ATTACKERS = (0, 9)


def main():
    points, rows = [], []
    for values in itertools.product(AGGREGATORS, COMPRESSORS, PRIVACIES, ATTACKERS):
        point = dict(zip(KEYS, values, strict=True))
        try:
            jaxfl.plan([point], **SETTINGS)
        except ValueError as error:
            rows.append(point | {"refused": str(error)})
        else:
            points.append(point)
    ds = jaxfl.sweep(points, progress=True, **SETTINGS)
    private = FedAvg(lr=0.1, privacy=Gaussian(**MECHANISM))
    spent = epsilon(private, Uniform(CLIENTS, COHORT), ROUNDS, DELTA)
    for k, point in enumerate(points):
        end = ds.isel(point=k, round=-1)
        scores = np.asarray(end.accuracy, float)
        found = {"accuracy": scores.mean(), "deviation": scores.std(ddof=1)}
        found |= {"diverged": int((end.status == 3).sum()), "megabytes": end.megabytes.mean()}
        found |= {"epsilon": spent} if point["privacy"] != "noprivacy" else {}
        rows.append(point | {k: float(v) for k, v in found.items()})
    path = record("parts", {"settings": SETTINGS, "delta": DELTA, "rows": rows})
    path.with_suffix(".md").write_text(table(rows))


def table(rows):
    """Accuracies: one line for each aggregator and compressor."""
    columns = list(itertools.product(PRIVACIES, ATTACKERS))
    heads = [
        f"{'DP, ' if privacy != 'noprivacy' else ''}{many or 'no'} attackers"
        for privacy, many in columns
    ]
    lines = [["aggregator", "compress", *heads], ["---"] * (2 + len(heads))]
    for one in itertools.product(AGGREGATORS, COMPRESSORS):
        cells = [
            next(row for row in rows if tuple(row[k] for k in KEYS) == (*one, *column))
            for column in columns
        ]
        lines.append([*one, *map(cell, cells)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(row):
    if "refused" in row:
        return "refused"
    if row["diverged"]:
        return "diverged"
    return f"{row['accuracy']:.3f} ± {row['deviation']:.3f}"


KEYS = ("aggregator", "compress", "privacy", "byzantine")
SETTINGS = dict(
    algorithms=("fedavg",),
    clients=CLIENTS,
    cohort=COHORT,
    alpha=1.0,
    minimum=5,
    rounds=ROUNDS,
    every=20,
    lr=(0.3,),
    seeds=3,
    adversary="signflip(10.0)",
)

if __name__ == "__main__":
    main()
