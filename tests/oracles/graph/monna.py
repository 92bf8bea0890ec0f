"""MoNNA (Farhadkhani et al., 2023): local momentum, then nearest-neighbour averaging."""

import numpy as np

from ..attacks import send
from ..problem import live, mean, stacked


def run(problem, x0, record, *, lr, beta, f, attack="none", z=1.5):
    """A round's own "attack" takes precedence; `z` is the factor of "alie"."""
    x, out = stacked(x0, len(record[0]["received"])), []
    m = np.zeros_like(x)
    for graph in record:
        active = np.asarray(graph.get("active", np.ones(len(x), bool)))
        byz = np.asarray(graph.get("byz", np.zeros(len(x), bool)))
        half, m_next, losses = x.copy(), m.copy(), []
        for i in range(len(x)):
            if not active[i]:
                continue
            steps = []
            for xi in live(graph["samples"][0][0], i):
                loss, g = problem.grad(half[i], *xi)
                m_next[i] = beta * m_next[i] + (1 - beta) * g
                half[i] = half[i] - lr * m_next[i]
                steps.append(loss)
            losses.append(mean(steps))
        sent = send(graph.get("attack", attack), half, byz, z)
        x_next = x.copy()
        for i in range(len(x)):
            if active[i]:
                own, *others = graph["received"][i]
                assert own == i, f"received[{i}] must begin with {i}, got {own}"
                # What a node holds of itself is true, also when it lies to the others.
                x_next[i] = nearest_average([half[i]] + [sent[j] for j in others], f)
        x, m = x_next, m_next
        out.append({"params": x, "m": m, "loss": mean(losses)})
    return out


def nearest_average(rows, f):
    """Mean of the `len(rows) - f` rows nearest to the first; a non-finite row is infinitely far."""
    distance = np.array([np.linalg.norm(np.asarray(row) - rows[0]) for row in rows])
    distance[~np.isfinite(distance)] = np.inf
    kept = np.argsort(distance, kind="stable")[: len(rows) - f]
    return np.mean([rows[r] for r in kept], axis=0)
