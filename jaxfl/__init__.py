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
| `algorithms`, `components`, `networks`, `data`, `models`, `metrics`, `problems` | modules |
| `results`, `plots`, `writers` | modules: of sweeps, pictures, metrics as they come |

Everything but `Clients`, `simulate` and `grid` is imported when it is first asked for.
"""

import typing as _typing
from importlib import import_module as _import_module

from jaxfl.engine.clients import Clients as Clients
from jaxfl.engine.grid import grid as grid
from jaxfl.engine.simulate import simulate as simulate

if _typing.TYPE_CHECKING:
    from jaxfl import algorithms as algorithms
    from jaxfl import components as components
    from jaxfl import data as data
    from jaxfl import metrics as metrics
    from jaxfl import models as models
    from jaxfl import networks as networks
    from jaxfl import plots as plots
    from jaxfl import problems as problems
    from jaxfl.engine.devices import spread as spread
    from jaxfl.runs import writers as writers
    from jaxfl.runs.checkpoint import Checkpoints as Checkpoints
    from jaxfl.runs.checkpoint import load as load
    from jaxfl.runs.checkpoint import save as save
    from jaxfl.runs.estimate import estimate as estimate
    from jaxfl.runs.run import run as run
    from jaxfl.studies import results as results
    from jaxfl.studies.citation import cite as cite
    from jaxfl.studies.compare import compare as compare
    from jaxfl.studies.compare import train as train
    from jaxfl.studies.config import Config as Config
    from jaxfl.studies.plan import plan as plan
    from jaxfl.studies.report import report as report
    from jaxfl.studies.sweep import sweep as sweep

__version__ = "0.1.0"

_NAMES = {  # what is imported when it is first asked for: modules by their home, names by theirs
    "algorithms": "algorithms",
    "components": "components",
    "data": "data",
    "metrics": "metrics",
    "models": "models",
    "networks": "networks",
    "plots": "plots",
    "problems": "problems",
    "results": "studies.results",
    "writers": "runs.writers",
    "Checkpoints": "runs.checkpoint:Checkpoints",
    "Config": "studies.config:Config",
    "cite": "studies.citation:cite",
    "compare": "studies.compare:compare",
    "estimate": "runs.estimate:estimate",
    "load": "runs.checkpoint:load",
    "plan": "studies.plan:plan",
    "report": "studies.report:report",
    "run": "runs.run:run",
    "save": "runs.checkpoint:save",
    "spread": "engine.devices:spread",
    "sweep": "studies.sweep:sweep",
    "train": "studies.compare:train",
}
# No `__all__`: with it, `help(jaxfl)` would print the documentation of every name.
_PUBLIC = sorted(["Clients", "grid", "simulate", *_NAMES])


def __getattr__(name: str) -> _typing.Any:
    """Imports a module or a function when it is first asked for."""
    if name not in _NAMES:
        raise AttributeError(f"module 'jaxfl' has no attribute {name!r}")
    home, _, inside = _NAMES[name].partition(":")
    found = _import_module(f"jaxfl.{home}")
    value = getattr(found, inside) if inside else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    here = ("__doc__", "__file__", "__name__", "__path__", "__version__")
    return [*_PUBLIC, *here]
