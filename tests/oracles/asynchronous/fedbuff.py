"""FedBuff (Nguyen et al., 2022): a full buffer of stale updates moves the server."""

import numpy as np

from ..problem import live, mean, participants


def run(problem, x0, record, *, lr, server_lr=1.0, exponent=0.5):
    x, out = np.array(x0, float), []
    past = [x]  # past[t] is the model at the start of round t
    for t, arrivals in enumerate(record):
        buffer, losses = np.zeros_like(x), []
        for r, _, p in participants(arrivals):
            age = int(arrivals["age"][r])
            received = past[max(t - age, 0)]
            y, steps = received.copy(), []
            for xi in live(arrivals["samples"][0][0], r):
                loss, g = problem.grad(y, *xi)
                y = y - lr * g
                steps.append(loss)
            # The discount is not normalised: a buffer of old updates makes a short step.
            buffer = buffer + (1 + age) ** -exponent * p * (y - received)
            losses.append(mean(steps))
        x = x + server_lr * buffer
        past.append(x)
        out.append({"params": x, "loss": mean(losses)})
    return out
