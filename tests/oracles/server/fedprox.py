"""FedProx (Li et al., 2020): FedAvg whose clients minimise `f_i(y) + mu/2 |y - x|^2`."""

import numpy as np

from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, mu, server_lr=1.0):
    x, out = np.array(x0, float), []
    for cohort in record:
        update, losses = np.zeros_like(x), []
        for r, _, p in participants(cohort):
            y, steps = x.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * (g + mu * (y - x))
                steps.append(loss)  # of the data alone, without the proximal term
            update = update + p * (y - x)
            losses.append(mean(steps))
        x = x + server_lr * update
        out.append({"params": x, "loss": mean(losses)})
    return out
