"""Exact diffusion (Yuan et al., 2018), D2 (Tang et al., 2018): adapt, correct, combine."""

import numpy as np

from ..problem import live, mean, mix, nodes, stacked


def run(problem, x0, record, *, lr, lazy=0.0):
    x, out = stacked(x0, len(record[0]["W"])), []
    psi = x.copy()
    for graph in record:
        w, active = nodes(graph)
        w = lazy * np.eye(len(w)) + (1 - lazy) * w
        psi_next, phi, losses = psi.copy(), x.copy(), []
        for i in active:
            y, steps = x[i].copy(), []
            for xi in live(graph["samples"][0][0], i):
                loss, g = problem.grad(y, *xi)
                y = y - lr * g
                steps.append(loss)
            psi_next[i] = y
            phi[i] = psi_next[i] + x[i] - psi[i]
            losses.append(mean(steps))
        x, psi = mix(w, phi), psi_next
        out.append({"params": x, "psi": psi, "loss": mean(losses)})
    return out
