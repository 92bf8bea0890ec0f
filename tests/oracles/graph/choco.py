"""CHOCO-SGD (Koloskova, Stich and Jaggi, 2019; Koloskova, Lin et al., 2020): compressed gossip."""

import numpy as np

from ..problem import live, mean, nodes, stacked


def run(problem, x0, record, *, lr, gamma, compress, order="icml"):
    x, out = stacked(x0, len(record[0]["W"])), []
    x_hat = np.zeros_like(x)
    for t, graph in enumerate(record):
        w, active = nodes(graph)
        half, losses = x.copy(), []
        for i in active:
            steps = []
            for xi in live(graph["samples"][0][0], i):
                loss, g = problem.grad(half[i], *xi)
                half[i] = half[i] - lr * g
                steps.append(loss)
            losses.append(mean(steps))
        if order == "icml":  # the new public copies are mixed
            x_hat = exchange(x_hat, half, active, compress, t)
            x = gossip(half, x_hat, w, gamma)
        elif order == "code":  # the old ones are mixed: communication overlaps the next gradient
            x = gossip(half, x_hat, w, gamma)
            x_hat = exchange(x_hat, x, active, compress, t)
        else:
            raise ValueError(f"order must be 'icml' or 'code', got {order!r}")
        out.append({"params": x, "x_hat": x_hat, "loss": mean(losses)})
    return out


def exchange(x_hat, x, active, compress, t):
    """`x_hat_i + C(x_i - x_hat_i)` of the active nodes."""
    x_hat = x_hat.copy()
    for i in active:
        x_hat[i] = x_hat[i] + compress(x[i] - x_hat[i], i, t)
    return x_hat


def gossip(x, x_hat, w, gamma):
    """`x_i + gamma sum_j W_ij (x_hat_j - x_hat_i)`."""
    x = x.copy()
    for i in range(len(x)):
        x[i] = x[i] + gamma * sum(w[i, j] * (x_hat[j] - x_hat[i]) for j in range(len(x)))
    return x
