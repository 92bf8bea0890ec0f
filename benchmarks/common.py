"""What every benchmark shares: results as JSON, with all that is needed to repeat them."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("JAXFL_RESULTS", ROOT / "benchmarks" / "results"))


def record(name: str, results: Any) -> Path:
    """Writes results/<name>.json beside this file: command, commit, versions, device, results.

    Args:
        name: of the file; on an accelerator "gpu_" or "tpu_" comes before it.
        results: dicts, lists, numbers, strings, NumPy and JAX arrays; non-finite numbers become
            strings, since JSON has none.
    """
    backend = jax.default_backend()
    path = RESULTS / f"{'' if backend == 'cpu' else backend + '_'}{name}.json"
    device = jax.devices()[0]
    entry = {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{
                p: importlib.metadata.version(p)
                for p in ("jax", "jaxlib", "flax", "optax", "numpy")
            },
        },
        "device": {
            "kind": device.device_kind,
            "count": jax.device_count(),
            "cores": os.cpu_count(),
        },
        "float64": bool(jax.config.jax_enable_x64),
        "results": _plain(results),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entry, indent=1, allow_nan=False) + "\n")
    print(f"wrote {path}")
    return path


def _commit():
    if "JAXFL_COMMIT" in os.environ:  # a copy of the files without their history
        return os.environ["JAXFL_COMMIT"]
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() or None


def _plain(a):
    if isinstance(a, dict):
        return {str(k): _plain(v) for k, v in a.items()}
    if isinstance(a, list | tuple):
        return [_plain(v) for v in a]
    if isinstance(a, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(a).tolist())
    if isinstance(a, float) and not np.isfinite(a):
        return str(a)
    return a
