"""What Byzantine nodes send: from all rows `[n, d]` and who is Byzantine `[n]` to the messages.

Honest rows pass unchanged; mean and deviation are those of the honest rows.
"""

import numpy as np


def none(rows, byz):
    return np.array(rows, float)


def signflip(rows, byz):
    """Every attacker negates its own vector."""
    return np.array([-row if bad else row for row, bad in zip(rows, byz, strict=True)])


def signflip_mean(rows, byz):
    """Every attacker sends minus the honest mean."""
    mu = np.mean([row for row, bad in zip(rows, byz, strict=True) if not bad], axis=0)
    return np.array([-mu if bad else row for row, bad in zip(rows, byz, strict=True)])


def alie(rows, byz, z=1.5):
    """A little is enough (Baruch et al., 2019): `mean - z std`, per coordinate, ddof = 1."""
    honest = np.array([row for row, bad in zip(rows, byz, strict=True) if not bad])
    bad_row = honest.mean(axis=0) - z * honest.std(axis=0, ddof=1)
    return np.array([bad_row if bad else row for row, bad in zip(rows, byz, strict=True)])


def send(attack, rows, byz, z=1.5):
    """The messages `[n, d]` under the attack of that name; `z` is ALIE's."""
    if attack == "alie":
        return alie(rows, byz, z)
    return {"none": none, "signflip": signflip, "signflip_mean": signflip_mean}[attack](rows, byz)
