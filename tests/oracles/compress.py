"""Compressors of one vector `[d]`; what is random comes as an argument."""

import numpy as np


def topk(v, k):
    """Keep the k entries of largest magnitude; of equal ones the first."""
    out = np.zeros_like(v)
    for j in sorted(range(len(v)), key=lambda j: (-abs(v[j]), j))[:k]:
        out[j] = v[j]
    return out


def randk(v, mask, contractive=False):
    """Keep the entries of the mask, scaled by d/k (unbiased) or as they are (contractive)."""
    k = np.sum(mask)
    return np.where(mask, v if contractive else v * len(v) / k, 0.0)


def qsgd(v, s, uniforms, contractive=False):
    """QSGD (Alistarh et al., 2017): `s |v_j| / |v|`, rounded up where uniform < its fraction.

    Contractive: divided by `1 + min(d/s^2, sqrt(d)/s)`.
    """
    norm = np.sqrt(np.sum(v**2))
    if norm == 0:
        return np.zeros_like(v)
    level = s * np.abs(v) / norm
    low = np.floor(level)
    out = norm * np.sign(v) * (low + (uniforms < level - low)) / s
    return out / (1 + min(len(v) / s**2, np.sqrt(len(v)) / s)) if contractive else out
