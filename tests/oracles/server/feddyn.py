"""FedDyn (Acar et al., 2021), in the scaled form: H_i = -grad_i / mu, and no server dual."""

import numpy as np

from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, mu, n):
    x, scaled, out = np.array(x0, float), np.zeros((n, len(x0))), []
    for cohort in record:
        ends, losses = [], []
        for r, i, _ in participants(cohort):
            y, steps = x.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * (g + mu * (y - x + scaled[i]))
                steps.append(loss)
            scaled[i] = scaled[i] + y - x
            ends.append(y)
            losses.append(mean(steps))
        if ends:
            x = np.mean(ends, axis=0) + scaled.mean(0)
        duals = -mu * scaled
        out.append({"params": x, "h": duals.mean(0), "h_i": duals.copy(), "loss": mean(losses)})
    return out
