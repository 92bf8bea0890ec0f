"""FedExP (Jhunjhunwala et al., 2023): the server's rate from how much the changes disagree."""

import numpy as np

from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, eps):
    z, last, out = np.array(x0, float), np.array(x0, float), []
    for cohort in record:
        changes, shares, losses = [], [], []
        for r, _, p in participants(cohort):
            y, seen = z.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * g
                seen.append(loss)
            changes.append(y - z)
            shares.append(p)
            losses.append(mean(seen))
        if changes:
            d = sum(p * change for p, change in zip(shares, changes, strict=True))
            far = sum(p * (change @ change) for p, change in zip(shares, changes, strict=True))
            last, z = z, z + max(1, far / (2 * (d @ d + eps))) * d
        out.append({"params": (z + last) / 2, "z": z, "last": last, "loss": mean(losses)})
    return out
