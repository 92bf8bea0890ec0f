"""SCAFFOLD, option II (Karimireddy et al., 2020): control variates against client drift."""

import numpy as np

from .problem import live, mean, participants


def run(problem, x0, record, *, lr, server_lr=1.0, n=None):
    x, out = np.array(x0, float), []
    n = problem.n if n is None else n
    c, c_i = np.zeros_like(x), np.zeros((n, len(x)))
    for cohort in record:
        update, update_c, losses = np.zeros_like(x), np.zeros_like(x), []
        c_next = c_i.copy()
        for r, i, p in participants(cohort):
            y, steps = x.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * (g - c_i[i] + c)
                steps.append(loss)
            if steps:  # K is the number of steps really taken
                c_next[i] = c_i[i] - c + (x - y) / (len(steps) * lr)
            update = update + p * (y - x)
            update_c = update_c + (c_next[i] - c_i[i]) / n
            losses.append(mean(steps))
        x, c, c_i = x + server_lr * update, c + update_c, c_next
        out.append({"params": x, "c": c, "c_i": c_i, "loss": mean(losses)})
    return out
