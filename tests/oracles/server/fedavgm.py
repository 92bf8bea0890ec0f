"""FedAvgM (Hsu et al., 2019): heavy-ball momentum on the mean change."""

import numpy as np

from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, beta, server_lr=1.0):
    x, v, out = np.array(x0, float), np.zeros(len(x0)), []
    for cohort in record:
        delta, losses = np.zeros_like(x), []
        for r, _, p in participants(cohort):
            y, steps = x.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * g
                steps.append(loss)
            delta = delta + p * (y - x)
            losses.append(mean(steps))
        if losses:  # without a participant nothing moves
            v = beta * v - delta
            x = x - server_lr * v
        out.append({"params": x, "memory": v, "loss": mean(losses)})
    return out
