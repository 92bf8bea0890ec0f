"""D-SGD (Lian et al., 2017; Koloskova et al., 2020) with one or several local steps per mixing."""

from ..problem import live, mean, mix, nodes, stacked


def run(problem, x0, record, *, lr, order="atc"):
    x, out = stacked(x0, len(record[0]["W"])), []
    for graph in record:
        w, active = nodes(graph)
        y, losses = x.copy(), []
        for i in active:
            steps = []
            for xi in live(graph["samples"][0][0], i):
                loss, g = problem.grad(y[i], *xi)
                y[i] = y[i] - lr * g
                steps.append(loss)
            losses.append(mean(steps))
        if order == "atc":  # adapt, then combine
            x = mix(w, y)
        elif order == "cta":  # the update is computed at x and added to what was combined
            x = mix(w, x) + (y - x)
        else:
            raise ValueError(f"order must be 'atc' or 'cta', got {order!r}")
        out.append({"params": x, "loss": mean(losses)})
    return out
