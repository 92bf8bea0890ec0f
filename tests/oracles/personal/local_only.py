"""Training alone: no client hears of another."""

from ..problem import live, mean, participants, stacked


def run(problem, x0, record, *, lr, n):
    v, out = stacked(x0, n), []
    for cohort in record:
        losses = []
        for r, i, _ in participants(cohort):
            steps = []
            for xi in live(cohort["samples"][0][0], r):
                loss, g = problem.grad(v[i], *xi)
                v[i] = v[i] - lr * g
                steps.append(loss)
            losses.append(mean(steps))
        out.append({"params": v.copy(), "personal": v.copy(), "loss": mean(losses)})
    return out
