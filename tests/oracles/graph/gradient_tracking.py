"""Gradient tracking: ATC (Xu et al., 2015), semi-ATC, DIGing (Nedic, Olshevsky and Shi, 2017)."""

import numpy as np

from ..problem import mean, mix, nodes, stacked


def run(problem, x0, record, *, lr, order="atc", init):
    x, out = stacked(x0, len(record[0]["W"])), []
    index, weight = init["samples"][0][0]
    g = np.array([problem.grad(x[i], index[i][0], weight[i][0])[1] for i in range(len(x))])
    y = g.copy()
    for graph in record:
        w, active = nodes(graph)
        index, weight = graph["samples"][0][0]
        idle = [i for i in range(len(x)) if i not in active]
        step = lr * y
        step[idle] = 0
        if order in ("atc", "semi-atc"):
            x = mix(w, x - step)
        elif order == "diging":
            x = mix(w, x) - step
        else:
            raise ValueError(f"order must be 'atc', 'semi-atc' or 'diging', got {order!r}")
        g_next, losses = g.copy(), []
        for i in active:
            loss, g_next[i] = problem.grad(x[i], index[i][0], weight[i][0])
            losses.append(loss)
        # The stored gradient is subtracted, never a new sample of it: mean(y) = mean(g) always.
        y = mix(w, y + g_next - g) if order == "atc" else mix(w, y) + g_next - g
        g = g_next
        out.append({"params": x, "y": y, "g": g, "loss": mean(losses)})
    return out
