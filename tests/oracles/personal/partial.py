"""FedPer, LG-FedAvg and FedBN: coordinates at home stay with the client, FedAvg on the others."""

import numpy as np

from ..problem import live, mean, participants, stacked


def run(problem, x0, record, *, lr, n, home, server_lr=1.0):
    """`home [d]`: which coordinates stay."""
    x, own, out = np.array(x0, float), stacked(x0, n), []
    for cohort in record:
        update, losses = np.zeros_like(x), []
        for r, i, p in participants(cohort):
            start = np.where(home, own[i], x)
            y, steps = start.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * g
                steps.append(loss)
            update = update + p * np.where(home, 0, y - start)
            own[i] = y
            losses.append(mean(steps))
        x = x + server_lr * update
        personal = np.where(home, own, x)
        out.append({"params": x, "personal": personal, "loss": mean(losses)})
    return out
