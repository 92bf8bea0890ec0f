"""What is swept: names and values, as data."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.studies import experiment
from jaxfl.studies.config import FIELDS, MOST, Config
from jaxfl.studies.names import Call, component, parse
from jaxfl.studies.registry import components, registries
from jaxfl.types import nearest, plain, shown

OPTIONS = ("stop_at", "patience", "width")  # of `sweep`, beside the settings of runs


@dataclass(frozen=True)
class Space:
    """The settings of a sweep: axes over a configuration.

    Args:
        config: what is not swept.
        over: values by name, of which the product is run; or a list of points, value by name.
    """

    config: Config
    over: Any

    @classmethod
    def make(cls, over: Any, config: Config | None = None, **settings: Any) -> "Space":
        """A checked space.

        Args:
            over: as above; a number for "seed" is how many.
            config: a configuration; by default `Config()` with FedAvg alone.
            settings: fields of `Config` to change.

        Raises:
            ValueError: an empty or repeated list, conflicting settings, too many runs, and what
                `Config.make` refuses.
        """
        if config is None:
            settings = {"algorithms": ("fedavg",)} | settings
        seed = plain(settings.get("seed", config.seed if config else 0))
        if isinstance(over, Mapping) and over:
            axes: Any = {str(k): _several(str(k), v, seed) for k, v in over.items()}
            first = {k: v[0] for k, v in axes.items()}
        elif isinstance(over, Sequence) and over and all(isinstance(p, Mapping) for p in over):
            axes = [{str(k): _single(k, _plain(k, v)) for k, v in p.items()} for p in over]
            _distinct("the list of points", axes)
            first = axes[0]
        else:
            raise ValueError(
                f"over must be a table of lists or a list of tables, got {shown(over)}; for "
                "example `sweep({'lr': [0.1, 0.3], 'seed': 5})`"
            )
        for name in set().union(*([axes] if isinstance(axes, dict) else axes)):
            if name in _FIXED:
                raise ValueError(f"{name} cannot be swept: {_FIXED[name]}")
            if name in settings and isinstance(axes, dict) and name not in ("lr", "seed"):
                fix = f"`sweep({{{name!r}: [...]}})`"
                raise ValueError(f"{name} is both swept and set; keep it in the sweep only: {fix}")
        # what is swept takes the place of a default that may not fit, such as a cohort's
        own = {k: v for k, v in first.items() if k in FIELDS and k not in ("lr", "seed")}
        space = cls(Config.make(config, **own | settings), axes)
        if "algorithm" in space.names and len(space.config.algorithms) > 1:
            raise ValueError("algorithms are both swept and set; keep them in one of the two")
        _few(space.size)
        return space

    @property
    def names(self) -> set[str]:
        """What is swept."""
        return set(self.over) if isinstance(self.over, dict) else set().union(*self.over)

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Dimensions of the result, in order: their values; of "point" the tables."""
        config, names, over = self.config, self.names, self.over
        axes: dict[str, list[Any]] = {}
        if "algorithm" not in names and len(config.algorithms) > 1:
            axes["algorithm"] = list(config.algorithms)
        axes |= {k: v for k, v in over.items() if k != "seed"} if isinstance(over, dict) else {}
        axes |= {} if isinstance(over, dict) else {"point": over}
        if "lr" not in names and len(config.lr) > 1 and self._rates():
            axes["lr"] = list(config.lr)
        if isinstance(over, dict) and "seed" in over:
            axes["seed"] = over["seed"]
        elif "seed" not in names:
            axes["seed"] = list(range(config.seed, config.seed + config.seeds))
        return axes

    def _rates(self):
        """Whether an algorithm tries the learning rates of the configuration."""
        over, usual = [self.over] if isinstance(self.over, dict) else self.over, self.config
        used = {str(a) for p in over for a in np.ravel(p.get("algorithm", usual.algorithms))}
        named = (experiment.fields(parse(text)).values() for text in used)
        return any(tune is True for fields in named for _, tune in fields)

    @property
    def size(self) -> int:
        """How many combinations."""
        return math.prod(map(len, self.axes.values()))

    def runs(self) -> Iterator[Config]:
        """Every combination as a configuration of one algorithm, learning rate and seed.

        Raises:
            ValueError: a name that nothing has, a value out of range.
        """
        axes, used, fields = self.axes, set(), {}
        for values in itertools.product(*axes.values()):
            setting: dict[str, Any] = {}
            for name, value in zip(axes, values, strict=True):
                setting |= value if name == "point" else {name: value}
            try:
                config, here = _configured(self.config, setting, fields)
            except ValueError as error:
                raise ValueError(f"in the run {shown(setting)}: {error}") from error
            used |= here
            yield config
        if strangers := self.names - used - {"algorithm", "seed"}:
            known = {*FIELDS, "algorithm", *(f for names in fields.values() for f in names)}
            known -= set(_FIXED)
            name = min(strangers)
            who = "none of these settings" if "." in name else "neither Config nor an algorithm"
            raise ValueError(f"{who} has {name!r}{nearest(name, sorted(known))}")

    @classmethod
    def read(cls, path: str | Path) -> "tuple[Space, dict[str, Any]]":
        """The space of a TOML file, and its options `stop_at`, `patience` and `width`.

        Raises:
            ValueError: a file that cannot be read, and what `make` refuses.
        """
        import tomllib

        example = "`rounds = 100`, then `[sweep]`, `lr = [0.1, 0.3]`, `seed = 8`"
        try:
            with open(path, "rb") as file:
                values = tomllib.load(file)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"cannot read the sweep {str(path)!r}: {shown(error)}; write lines like {example}"
            ) from error
        if "sweep" not in values:
            raise ValueError(f"{str(path)!r} has no table [sweep]; write lines like {example}")
        options = {k: values.pop(k) for k in OPTIONS if k in values}
        for name, value in options.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}; for example {name} = 3")
        over = values.pop("sweep")
        if strangers := [name for name in values if name not in FIELDS]:
            known = [*FIELDS, *OPTIONS, "sweep"]
            raise ValueError(f"no setting {strangers[0]!r}{nearest(strangers[0], known)}")
        return cls.make(over, **values), options

    def toml(self) -> str:
        """The text of a file for `jaxfl sweep`."""
        import tomli_w

        swept = self.names if isinstance(self.over, dict) else set()
        fixed = {
            k: v for k, v in dataclasses.asdict(self.config).items() if k not in swept - {"seed"}
        }
        return tomli_w.dumps(fixed | {"sweep": self.over})


_FIXED = {k: f.metadata["fixed"] for k, f in FIELDS.items() if f.metadata["fixed"]}


def _plain(name, value):
    """Numbers, strings and lists of them, as TOML has them."""
    value = plain(value)
    if isinstance(value, list):
        return [_plain(name, v) for v in value]
    if isinstance(value, str | bool | int | float):
        return value
    raise ValueError(
        f"{name} takes numbers, names and lists of them, got {shown(value)}; give an object a "
        "name: `jaxfl.algorithms.ALGORITHMS['mine'] = Mine`"
    )


def _few(runs):
    """Counted before anything is made of them."""
    if runs > MOST:
        raise ValueError(
            f"a sweep of {runs:,} runs, where {MOST:,} are the most; shorten a list, or make "
            "several sweeps of it, each with a folder of its own"
        )


def _several(name, values, seed):
    several = plain(values)
    if name == "seed" and isinstance(several, int) and not isinstance(several, bool):
        _few(several)
        several = list(range(seed, seed + several))
    several = _plain(name, several)
    if not isinstance(several, list) or not several or name == "point":
        example = "`seed = 5`" if name == "seed" else "`[0.1, 0.3]`"
        raise ValueError(
            f"{name} needs a list of values, got {shown(values)}; for example {example}"
        )
    _distinct(name, several)
    return several


def _single(name, value):
    if isinstance(value, list):
        raise ValueError(
            f"{name} of a point takes one value, got {value!r}; write one point for each"
        )
    return value


def _distinct(name, values):
    seen = set()
    for value in values:
        if (key := _frozen(value)) in seen:
            raise ValueError(f"{name} holds {shown(value)} twice; drop one")
        seen.add(key)


def _frozen(value):
    if isinstance(value, dict):
        return frozenset((k, _frozen(v)) for k, v in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _configured(config, setting, fields):
    """The configuration of a run, and the names that meant something to it."""
    setting, used, changes = dict(setting), set(), {}
    call = parse(setting.pop("algorithm", config.algorithms[0]))
    seed = setting.pop("seed", config.seed)
    if call.name not in fields:
        fields[call.name] = experiment.fields(call)
    own, options = fields[call.name], dict(call.options)
    if listed := [k for k, value in options.items() if isinstance(value, list)]:
        raise ValueError(f"{call} has several values of {listed[0]}; sweep them, as {listed[0]}")
    for name, value in setting.items():
        head, _, tail = name.partition(".")
        value = component(value)
        if tail and head in own:
            value = _inner(options.get(head, own[head][0]), tail, value)
        elif tail and head in _TEXTS:
            text = parse(changes.get(head, getattr(config, head)))
            known = registries()[_TEXTS[head]]
            made = text.given(known, tail, value) if text.name in known else None
            value = None if made is None else str(made)
        elif tail or name not in (*own, *FIELDS):
            continue
        if value is None:  # this one has no such option
            continue
        used.add(name)
        (options if head in own else changes)[head] = value
    for name, (usual, tune) in own.items():  # of what is tuned a run has one value
        if tune and name not in options:
            options[name] = config.lr[0] if tune is True else usual
        if isinstance(tune, tuple) and options.get(name) is dataclasses.MISSING:
            raise ValueError(f"{call.name} needs {name}; sweep it: {{{name!r}: {list(tune)}}}")
    lr = options.get("lr", config.lr[0])
    text = str(call._replace(args=(), options=options))
    more = {"algorithms": (text,), "lr": (lr,), "seeds": 1, "seed": seed}
    return Config.make(config, **{k: _named(v) for k, v in changes.items()}, **more), used


# The kinds of the settings that hold names with options.
_TEXTS = {
    k: f.metadata["kind"]
    for k, f in FIELDS.items()
    if f.metadata["kind"] and k not in ("algorithms", "weights")
}


def _named(value):
    return str(value) if isinstance(value, Call) else value


def _inner(part, option, value):
    """A part with another option; None if it has none of that name."""
    if not isinstance(part, Call):
        if not dataclasses.is_dataclass(part):
            return None
        own = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        part = Call(type(part).__name__.lower(), (), own)
    return part.given(components(), option, value)
