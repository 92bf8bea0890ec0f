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

import sys as _sys
import typing as _typing
from importlib import import_module as _import_module
from types import ModuleType as _ModuleType

from jaxfl.clients import Clients as Clients
from jaxfl.simulate import grid as grid
from jaxfl.simulate import run as run
from jaxfl.simulate import simulate as simulate

if _typing.TYPE_CHECKING:
    from jaxfl import algorithms as algorithms
    from jaxfl import data as data
    from jaxfl import metrics as metrics
    from jaxfl import models as models
    from jaxfl import networks as networks
    from jaxfl import plots as plots
    from jaxfl import problems as problems
    from jaxfl import results as results
    from jaxfl import writers as writers
    from jaxfl.checkpoint import Checkpoints as Checkpoints
    from jaxfl.checkpoint import load as load
    from jaxfl.checkpoint import save as save
    from jaxfl.compare import Config as Config
    from jaxfl.compare import compare as compare
    from jaxfl.compare import train as train
    from jaxfl.devices import spread as spread
    from jaxfl.docs import cite as cite
    from jaxfl.memory import estimate as estimate
    from jaxfl.report import report as report
    from jaxfl.sweeps import plan as plan
    from jaxfl.sweeps import sweep as sweep

__version__ = "0.1.0"

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
# No `__all__`: with it, `help(jaxfl)` would print the documentation of every name.
_PUBLIC = sorted(["Clients", "grid", "run", "simulate", *_MODULES, *_NAMES])


def __getattr__(name: str) -> _typing.Any:
    """Imports a module or a function when it is first asked for."""
    if name in _MODULES:
        return _import_module(f"jaxfl.{name}")
    if name in _NAMES:
        value = getattr(_import_module(f"jaxfl.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'jaxfl' has no attribute {name!r}")


def __dir__() -> list[str]:
    here = ("__doc__", "__file__", "__name__", "__path__", "__version__")
    return [*_PUBLIC, *here]


class _Package(_ModuleType):
    """Importing the module `jaxfl.compare` would put it in the place of the function `compare`."""

    def __setattr__(self, name: str, value: _typing.Any) -> None:
        if isinstance(value, _ModuleType) and _NAMES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package
