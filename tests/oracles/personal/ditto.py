"""Ditto (Li et al., 2021): FedAvg, and personal models pulled towards the received model."""

import numpy as np

from ..problem import live, mean, participants, stacked


def run(problem, x0, record, *, lr, mu, server_lr=1.0, personal_lr=None, n=None):
    w, out = np.array(x0, float), []
    v = stacked(x0, problem.n if n is None else n)
    personal_lr = lr if personal_lr is None else personal_lr
    for cohort in record:
        update, losses, personal_losses = np.zeros_like(w), [], []
        v_next = v.copy()
        for r, i, p in participants(cohort):
            y, steps = w.copy(), []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * g
                steps.append(loss)
            update = update + p * (y - w)
            losses.append(mean(steps))
            u, steps = v[i].copy(), []
            for xi in live(cohort["samples"][1][0], r):
                loss, g = problem.grad(u, *xi)
                u = u - personal_lr * (g + mu * (u - w))
                steps.append(loss)
            v_next[i] = u
            personal_losses.append(mean(steps))
        w, v = w + server_lr * update, v_next
        out.append(
            {
                "params": w,
                "personal": v,
                "loss": mean(losses),
                "personal_loss": mean(personal_losses),
            }
        )
    return out
