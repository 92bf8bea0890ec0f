"""SCAFFOLD, option II (Karimireddy et al., 2020): control variates against client drift."""

import numpy as np

from ..attacks import send
from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, server_lr=1.0, n=None, attack="none"):
    x, out = np.array(x0, float), []
    n = problem.n if n is None else n
    c, c_i = np.zeros_like(x), np.zeros((n, len(x)))
    for cohort in record:
        who, dx, dc, losses = list(participants(cohort)), [], [], []
        c_next = c_i.copy()
        for r, i, _ in who:
            y, steps = x.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * (g - c_i[i] + c)
                steps.append(loss)
            if steps:  # K is the number of steps really taken
                c_next[i] = c_i[i] - c + (x - y) / (len(steps) * lr)
            dx.append(y - x)
            dc.append(c_next[i] - c_i[i])
            losses.append(mean(steps))
        if who:  # both payloads are what the clients say
            byz = [bool(cohort["byz"][r]) if "byz" in cohort else False for r, _, _ in who]
            dx, dc = (send(attack, np.array(rows), byz) for rows in (dx, dc))
            x = x + server_lr * sum(p * d for (_, _, p), d in zip(who, dx, strict=True))
            c, c_i = c + sum(dc) / n, c_next
        out.append({"params": x, "c": c, "c_i": c_i, "loss": mean(losses)})
    return out
