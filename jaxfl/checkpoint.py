"""Saving and loading models and states, and plain NumPy copies of them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np


def save(path: str | Path, tree: Any) -> None:
    """Writes a model, per-client models or a whole state as an orbax checkpoint folder.

    Args:
        path: a folder that does not exist yet.
        tree: a pytree of arrays.

    Raises:
        ValueError: the folder exists, or cannot be written.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    if path.exists():
        raise ValueError(f"path {path} exists already; choose a new name or delete it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
    except OSError as error:
        raise ValueError(
            f"path {path} cannot be written: {error}; choose another folder"
        ) from error


def load(path: str | Path, like: Any = None) -> Any:
    """Reads what `save` wrote.

    Args:
        path: the folder.
        like: a pytree of the same structure (a state, or `model.init(key)`) whose types and shapes
            the result takes; without it, nested dicts and lists of arrays.

    Raises:
        ValueError: no such checkpoint, a damaged one, or one that does not fit `like`.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    if not path.is_dir():
        raise ValueError(
            f"path {path} is not a checkpoint folder; `jaxfl.save(path, tree)` makes one"
        )
    target = None if like is None else jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, target)
    except Exception as error:  # orbax raises many kinds for a damaged or foreign folder
        raise ValueError(
            f"path {path} cannot be read as this checkpoint: {error}; pass `like=` the tree that "
            "was saved, or no `like` to see what it holds"
        ) from error


def to_numpy(tree: Any) -> Any:
    """The same pytree with NumPy arrays, for use without JAX."""
    return jax.tree.map(np.asarray, tree)
