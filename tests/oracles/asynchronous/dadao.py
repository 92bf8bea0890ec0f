"""DADAO (Nabli and Oyallon, 2023): accelerated, with gradients and exchanges at their own rates."""

import numpy as np
from scipy.linalg import expm

from ..problem import mean, stacked

NAMES = ("x", "x_tilde", "y", "y_tilde", "z", "z_tilde")


def run(problem, x0, record, *, smoothness, convexity, chi1, n=None):
    """`chi1` is that of the Laplacian weighted with the real rates of the edges."""
    L, nu = smoothness, convexity / 2
    alpha, theta = np.sqrt(nu / L) / 4, np.sqrt(L / nu) / 2
    eta = eta_tilde = alpha_tilde = np.sqrt(nu / L) / 8
    gamma, gamma_tilde = 1 / (4 * L), 1 / (4 * np.sqrt(L * nu))
    delta, delta_tilde = np.sqrt(nu / L) / 4, 1.0
    beta, beta_tilde = 0.5, 2 * chi1 * np.sqrt(L / nu)
    flow = np.array(
        [  # x        x~           y       y~     z            z~
            [-eta, eta, 0, 0, 0, 0],
            [eta_tilde, -eta_tilde, 0, 0, 0, 0],
            [0, 0, -alpha, alpha, 0, 0],
            [0, -theta * nu, -theta, 0, -theta, 0],
            [0, 0, 0, 0, -alpha, alpha],
            [0, 0, 0, 0, alpha_tilde, -alpha_tilde],
        ]
    )
    x = stacked(x0, problem.n if n is None else n)
    state = [np.array([x_i] + 5 * [np.zeros_like(x_i)]) for x_i in x]  # [6, d] of every node
    clock, out = np.zeros(len(x)), []

    def advance(i, time):
        state[i] = expm(flow * (time - clock[i])) @ state[i]
        clock[i] = time

    for timeline in record:
        losses = []
        for time, kind, i, j in timeline["events"]:
            advance(i, time)
            if kind == "grad":
                loss, g = problem.grad_i(i, state[i][0])
                h = g - nu * state[i][0] - state[i][3]
                state[i][0] -= gamma * h
                state[i][1] -= gamma_tilde * h
                state[i][3] += (delta + delta_tilde) * h
                losses.append(loss)
            elif kind == "comm":
                advance(j, time)
                m = (state[i][2] + state[i][4]) - (state[j][2] + state[j][4])
                state[i][4] -= beta * m
                state[j][4] += beta * m
                state[i][5] -= beta_tilde * m
                state[j][5] += beta_tilde * m
            else:
                raise ValueError(f"kind must be 'grad' or 'comm', got {kind!r}")
        for i in range(len(x)):
            advance(i, timeline["end"])
        six = {name: np.array([s[k] for s in state]) for k, name in enumerate(NAMES)}
        out.append({"params": six["x"], **six, "loss": mean(losses)})
    return out
