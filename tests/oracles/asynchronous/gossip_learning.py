"""Gossip learning (Ormándi et al., 2013): every arrival in its turn, every past model kept."""

import numpy as np

from .. import attacks
from ..problem import live, mean, stacked


def run(problem, x0, record, *, lr, mode="merge_update", merge="uniform", attack="none"):
    x = stacked(x0, len(record[0]["byz"]))
    # what each node has held: arrivals before it did, model, age
    past = [[(0, x_i, 0)] for x_i in x]
    out = []
    for t in record:
        losses = []

        def update(x, age, row, t=t, losses=losses):
            steps = []
            for xi in live(t["samples"][0][0], row):
                loss, g = problem.grad(x, *xi)
                x = x - lr * g
                steps.append(loss)
            losses.append(mean(steps))
            return x, age + len(steps)

        for number, sender, receiver, left, row in t["messages"]:
            _, y, s = [held for held in past[sender] if held[0] <= left][-1]
            y = attacks.send(attack, y[None], [t["byz"][sender]])[0]
            _, x, age = past[receiver][-1]
            if mode == "merge_update":
                x, age = update(*average(x, age, y, s, merge), row)
            elif mode == "update_merge":
                x, age = average(*update(x, age, row), *update(y, s, row), merge)
            else:
                x, age = update(y, s, row)
            past[receiver].append((number + 1, x, age))
        last = [held[-1] for held in past]
        out.append(
            {
                "params": np.array([x for _, x, _ in last]),
                "age": np.array([age for _, _, age in last]),
                "loss": mean(losses),
            }
        )
    return out


def average(x, age, y, s, merge):
    if merge == "age" and age + s > 0:
        return (age * x + s * y) / (age + s), max(age, s)
    return (x + y) / 2, max(age, s)
