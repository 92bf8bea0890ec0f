"""jaxfl: federated and decentralised learning as one XLA program.

    import jax
    import jaxfl
    from jaxfl import algorithms, data, metrics, models, networks
    digits = data.load("digits")
    partition = data.dirichlet(digits.train["y"], n=20, alpha=0.1)
    model = models.make("mlp", digits.train, digits.classes)
    clients = jaxfl.Clients.make(digits.train, partition, models.cross_entropy(model))
    world, params, key = networks.Uniform(20, 10), model.init(jax.random.key(0)), jax.random.key(1)
    options = {"rounds": 100, "every": 20, "evaluate": metrics.Evaluate(model, digits.valid)}
    run = lambda alg: jaxfl.simulate(alg, clients, world, params, key, **options)
    sweep = jaxfl.grid(algorithms.FedProx, lr=[0.03, 0.1, 0.3, 1.0], mu=[0.0, 0.01, 0.1])
    print(jax.vmap(run)(sweep).evaluations["accuracy"][:, -1].reshape(4, 3))

| here | what for |
|---|---|
| `Clients` | the stacked local problems: data, partition, loss |
| `simulate`, `run` | an experiment: as one program; in chunks with a host in between |
| `grid` | every combination of hyperparameters, for `jax.vmap` |
| `compare`, `train`, `Config` | the main job, as `jaxfl compare` runs it |
| `sweep`, `plan` | every combination of settings, kept in a folder; what that will be |
| `report` | a page of what these two found |
| `spread` | clients, networks and sweeps over the devices of a mesh |
| `estimate` | the memory of a run in advance |
| `save`, `load`, `Checkpoints` | models and states on disk; long runs that go on |
| `cite` | whom to cite for an algorithm |
| `algorithms`, `networks`, `data`, `models`, `metrics`, `problems` | modules |
| `results`, `plots`, `writers` | modules: of sweeps, pictures, metrics as they come |

Everything but `Clients`, `simulate`, `run` and `grid` is imported when it is first asked for.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jaxfl.clients import Clients
from jaxfl.simulate import grid, run, simulate

if TYPE_CHECKING:
    from jaxfl import algorithms, data, metrics, models, networks, plots, problems, results, writers
    from jaxfl.checkpoint import Checkpoints, load, save
    from jaxfl.compare import Config, compare, train
    from jaxfl.devices import spread
    from jaxfl.docs import cite
    from jaxfl.memory import estimate
    from jaxfl.report import report
    from jaxfl.sweeps import plan, sweep

__version__ = "0.1.0"

__all__ = [
    "Checkpoints",
    "Clients",
    "Config",
    "algorithms",
    "cite",
    "compare",
    "data",
    "estimate",
    "grid",
    "load",
    "metrics",
    "models",
    "networks",
    "plan",
    "plots",
    "problems",
    "report",
    "results",
    "run",
    "save",
    "simulate",
    "spread",
    "sweep",
    "train",
    "writers",
]

_MODULES = (
    "algorithms",
    "data",
    "metrics",
    "models",
    "networks",
    "plots",
    "problems",
    "results",
    "writers",
)
_NAMES = {
    "Checkpoints": "checkpoint",
    "Config": "compare",
    "cite": "docs",
    "compare": "compare",
    "estimate": "memory",
    "load": "checkpoint",
    "report": "report",
    "plan": "sweeps",
    "save": "checkpoint",
    "spread": "devices",
    "sweep": "sweeps",
    "train": "compare",
}


def __getattr__(name: str) -> Any:
    """Imports a module or a function when it is first asked for."""
    if name in _MODULES:
        return import_module(f"jaxfl.{name}")
    if name in _NAMES:
        value = getattr(import_module(f"jaxfl.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'jaxfl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


class _Package(ModuleType):
    """Importing the module `jaxfl.compare` would put it in the place of the function `compare`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _NAMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
