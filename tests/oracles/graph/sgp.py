"""SGP, stochastic gradient push (Assran et al., 2019): D-SGD on directed graphs by push-sum."""

import numpy as np

from ..problem import live, mean, mix, nodes, stacked


def run(problem, x0, record, *, lr):
    x, out = stacked(x0, len(record[0]["W"])), []
    w = np.ones(len(x))
    for graph in record:
        p, active = nodes(graph)  # column-stochastic: p[i, j] is the share of j that i receives
        half, losses = x.copy(), []
        for i in active:
            steps = []
            for xi in live(graph["samples"][0][0], i):
                loss, g = problem.grad(half[i] / w[i], *xi)  # at z, applied to x
                half[i] = half[i] - lr * g
                steps.append(loss)
            losses.append(mean(steps))
        x, w = mix(p, half), mix(p, w)
        z = np.array([x[i] / w[i] for i in range(len(x))])
        out.append({"params": z, "x": x, "w": w, "loss": mean(losses)})
    return out
