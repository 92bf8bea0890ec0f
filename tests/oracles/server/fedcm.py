"""FedCM (Xu et al., 2021) and, with gradients taken uphill, MoFedSAM (Qu et al., 2022)."""

import numpy as np

from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, alpha, steps, server_lr=1.0, flat="no", rho=0.0):
    x, direction, out = np.array(x0, float), np.zeros(len(x0)), []
    for cohort in record:
        update, losses = np.zeros_like(x), []
        for r, _, p in participants(cohort):
            y, seen = x.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                if flat == "sam":
                    _, g = problem.grad(y + rho * g / (np.linalg.norm(g) + 1e-7), *xi)
                y = y - lr * (alpha * g + (1 - alpha) * direction)
                seen.append(loss)
            update = update + p * (y - x)
            losses.append(mean(seen))
        if losses:
            direction = -update / (lr * steps)
            x = x + server_lr * update
        out.append({"params": x, "m": direction, "loss": mean(losses)})
    return out
