"""FedSAM (Qu et al., 2022): the gradient uphill of where it is used, on the same minibatch."""

import numpy as np

from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, rho, server_lr=1.0):
    x, out = np.array(x0, float), []
    for cohort in record:
        update, losses = np.zeros_like(x), []
        for r, _, p in participants(cohort):
            y, seen = x.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                up = y + rho * g / (np.linalg.norm(g) + 1e-7)
                y = y - lr * problem.grad(up, *xi)[1]
                seen.append(loss)
            update = update + p * (y - x)
            losses.append(mean(seen))
        x = x + server_lr * update
        out.append({"params": x, "loss": mean(losses)})
    return out
