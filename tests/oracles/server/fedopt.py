"""FedAdagrad, FedAdam, FedYogi (Reddi et al., 2021): an adaptive server on FedAvg's mean update."""

import numpy as np

from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, kind, server_lr=1.0, beta1=0.9, beta2=0.99, tau=1e-3, v0=None):
    x, out = np.array(x0, float), []
    m, v = np.zeros_like(x), np.full_like(x, tau**2 if v0 is None else v0)
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
        if losses:  # without a participant the server does not move, its moments neither
            m = beta1 * m + (1 - beta1) * delta
            if kind == "adagrad":
                v = v + delta**2
            elif kind == "adam":
                v = beta2 * v + (1 - beta2) * delta**2
            elif kind == "yogi":
                v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
            else:
                raise ValueError(f"kind must be 'adagrad', 'adam' or 'yogi', got {kind!r}")
            x = x + server_lr * m / (np.sqrt(v) + tau)
        out.append({"params": x, "m": m, "v": v, "loss": mean(losses)})
    return out
