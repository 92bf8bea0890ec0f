"""FedAvg (McMahan et al., 2017): clients train, the server averages."""

import numpy as np

from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, server_lr=1.0):
    x, out = np.array(x0, float), []
    for cohort in record:
        update, losses = np.zeros_like(x), []
        for r, _, p in participants(cohort):
            y, steps = x.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * g
                steps.append(loss)
            update = update + p * (y - x)
            losses.append(mean(steps))
        x = x + server_lr * update
        out.append({"params": x, "loss": mean(losses)})
    return out
