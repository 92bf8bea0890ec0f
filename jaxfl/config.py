"""What is compared, as data: the settings of the main job, and names with options."""

import ast
import dataclasses
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxfl.types import nearest, plain, shown

DEFAULT = (
    "fedavg",
    "fedprox",
    "fedadam(server_lr=0.01)",
    "scaffold",
    "ditto",
    "dsgd @ ring",
    "dsgd @ exponential",
    "gradienttracking @ ring",
    "choco(compress=topk(0.1)) @ ring",
)


@dataclass(frozen=True)
class Config:
    """What is compared: names and numbers only, as in a TOML file.

    Names take options in brackets: `partition="shards(per_client=2)"`, `data="synthetic(alpha=1)"`,
    `model="mlp(hidden=[200, 200])"`, `adversary="alie(z=1.5)"`. An algorithm may name its graph and
    learning rates of its own: `"fedprox(mu=0.1)"`, `"dsgd(lr=[0.1, 0.3]) @ torus"`.

    Args:
        algorithms: names of `jaxfl list algorithms`; differences are to the first.
        data: a name of `jaxfl list data`, a file or a folder that `jaxfl.data.read` reads, or such
            a file with options: `"table('adult.csv', target='income', client='country')"`.
        clients: number of clients; of the natural partition it follows from the data.
        partition: iid, dirichlet, shards, labels_per_client, quantity or natural.
        alpha: concentration of the dirichlet partition, above 0.
        minimum: examples that every client has at least.
        model: a name of `jaxfl list models`.
        graph: of decentralised algorithms that name none.
        weights: rule for mixing weights, of `jaxfl list weights`; by default the graph's own.
        rounds: of communication.
        every: rounds between evaluations, divides `rounds`.
        seeds: number of repetitions.
        seed: the first of them.
        lr: learning rates tried; validation data choose.
        cohort: clients per round of server methods (buffer size of buffered ones).
        steps: local steps of server methods.
        batch: examples per gradient, or "all" of a client.
        precision: of local training, float32, tf32 or bfloat16.
        byzantine: number of Byzantine clients, the first ones; scores are of the others.
        adversary: what they send, signflip, gaussiannoise, alie, ipm or dissensus.
        failures: probability that a link of a graph fails in a round, in [0, 1); of gossip learning
            that a message is lost.
        churn: probability that a node of a graph is absent in a round, in [0, 1); of gossip
            learning at the arrival of a message.
        compute: simulated seconds per gradient.
        latency: simulated seconds per message.
        up: bits per second that a client sends.
        down: bits per second that a client receives.
        target: score on all labels that costs are measured to; 0 takes 0.9 of the median final one.
        select: validation score by which a learning rate is chosen: all (labels), own (labels), or
            auto, own for methods with personal models and all for the others.
        vary: what a seed draws besides partition, initial model and the run: run (nothing more),
            split (into training, validation and test examples), graph (random ones), or all.
        reference: algorithm that is added to a comparison for reference; "" adds none.

    Example:
        >>> settings = jaxfl.Config.make(algorithms=["fedavg", "scaffold"], lr=[0.1, 0.3], seeds=3)
        >>> settings.algorithms, settings.quick().rounds
        (('fedavg', 'scaffold'), 40)
        >>> jaxfl.Config.make(round=5)
        Traceback (most recent call last):
            ...
        ValueError: no setting 'round'; did you mean 'rounds'?
    """

    algorithms: tuple[str, ...] = DEFAULT
    data: str = "digits"
    clients: int = 20
    partition: str = "dirichlet"
    alpha: float = 0.1
    minimum: int = 10
    model: str = "mlp(hidden=[32])"
    graph: str = "ring"
    weights: str = ""
    rounds: int = 200
    every: int = 20
    seeds: int = 5
    seed: int = 0
    lr: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    cohort: int = 10
    steps: int = 10
    batch: int | Literal["all"] = 16
    precision: str = "float32"
    byzantine: int = 0
    adversary: str = "signflip"
    failures: float = 0.0
    churn: float = 0.0
    compute: float = 0.01
    latency: float = 0.05
    up: float = 10e6
    down: float = 50e6
    target: float = 0.0
    select: str = "auto"
    vary: str = "run"
    reference: str = "local"

    def quick(self) -> "Config":
        """A fifth of the rounds, two seeds, three learning rates: a look, not a result."""
        middle, every = len(self.lr) // 2, max(1, self.every // 2)
        return dataclasses.replace(
            self,
            rounds=max(every, self.rounds // 5 // every * every),
            every=every,
            seeds=min(self.seeds, 2),
            lr=self.lr[max(0, middle - 1) : middle + 2],
        )

    def to_toml(self) -> str:
        """The text of a configuration file."""
        import tomli_w

        return tomli_w.dumps({name: plain(value) for name, value in vars(self).items()})

    @classmethod
    def from_toml(cls, path: str | Path) -> "Config":
        """The configuration of a file; what it leaves out is as by default.

        Raises:
            ValueError: a file that cannot be read, and what `make` refuses.
        """
        values = read_toml(path)
        try:
            return cls.make(**values)
        except ValueError as error:
            raise ValueError(f"in the configuration {str(path)!r}: {error}") from error

    @classmethod
    def make(cls, config: "Config | None" = None, /, **changes: Any) -> "Config":
        """A checked configuration: `config`, or the default one, with changes.

        Raises:
            ValueError: an unknown key (with the nearest), a wrong type, a value out of range.
        """
        for name in changes:
            if name not in _DEFAULTS:
                raise ValueError(f"no setting {shown(name)}{nearest(name, list(_DEFAULTS))}")
        given = (vars(config) if config else {}) | changes
        typed: dict[str, Any] = {
            name: _typed(name, plain(value), _DEFAULTS[name]) for name, value in given.items()
        }
        made = cls(**typed)
        made._check()
        return made

    def _check(self):
        def need(name, valid, expected, fix):
            if not valid:
                got = getattr(self, name)
                raise ValueError(
                    f"{name} must be {expected}, got {shown(got)}; use `{name}={fix!r}`"
                )

        least = {"seed": 0, "minimum": 1} | dict.fromkeys(
            ("clients", "rounds", "every", "seeds", "cohort", "steps", "batch"), 1
        )
        for name, low in least.items():
            value, most = getattr(self, name), _LARGEST if name == "seed" else _MOST
            if value == "all":  # of a batch
                continue
            need(name, value >= low, f"at least {low}", _DEFAULTS[name])
            need(name, value <= most, f"at most {most:,}", _DEFAULTS[name])
        if not self.partition.startswith("natural"):  # then clients follow from the data
            n = self.clients
            need("cohort", self.cohort <= n, f"at most clients={n}", n)
            need("byzantine", 0 <= self.byzantine < n, f"below clients={n}", n // 4)
        if self.rounds % self.every:
            below = range(min(self.every, 10_000), 0, -1)
            whole = next(d for d in below if self.rounds % d == 0)
            need("every", False, f"a divisor of rounds={self.rounds}", whole)
        need("algorithms", self.algorithms, "one name or more", ("fedavg",))
        need("lr", _rising(self.lr), "positive and rising", (0.1, 0.3, 1.0))
        most = max(1, MOST // (len(self.algorithms) * len(self.lr)))
        need("seeds", self.seeds <= most, f"at most {most:,} ({MOST:,} runs in all)", 5)
        for name in ("failures", "churn"):
            need(name, 0 <= getattr(self, name) < 1, "in [0, 1)", 0.1)
        for name in ("compute", "latency"):
            need(name, 0 <= getattr(self, name) < np.inf, "0 or more", _DEFAULTS[name])
        for name in ("alpha", "up", "down"):
            need(name, getattr(self, name) > 0, "above 0", _DEFAULTS[name])
        need("target", np.isfinite(self.target), "finite", 0.9)
        need("select", self.select in ("auto", "all", "own"), "auto, all or own", "auto")
        need("vary", self.vary in VARY, f"one of {', '.join(VARY)}", "run")


MOST = 1_000_000  # runs of one sweep or comparison
VARY = ("run", "split", "graph", "all")
_MOST = 2**31 - 1  # rounds, steps and clients are counted in int32
_LARGEST = 2**53  # whole numbers up to here are floats too
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values of a configuration file.

    Raises:
        ValueError: a file that cannot be read, or is no TOML.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"cannot read the configuration {str(path)!r}: {shown(error)}; write one: "
            "`open(path, 'w').write(Config().to_toml())`"
        ) from error


def _rising(lr):
    values = np.asarray(lr, float)
    good = values.size > 0 and np.isfinite(values).all() and (values > 0).all()
    return bool(good and (np.diff(values) > 0).all())


def _typed(name, value: Any, default):
    """The value as the type of the default, or a ValueError."""
    if name == "batch" and str(value) == "all":
        return "all"
    if isinstance(default, tuple):
        several = value if isinstance(value, list) else [value]
        return tuple(_typed(name, item, default[0]) for item in several)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, str) and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, int) or isinstance(default, int):
        number = number and abs(value) <= _LARGEST
    if isinstance(default, float) and number:
        return float(value)
    if isinstance(default, int) and number and value == int(value):
        return int(value)
    words = {str: "a string", float: "a number", int: "a whole number"}[type(default)]
    words += ' or "all"' if name == "batch" else ""
    raise ValueError(
        f"{name} must be {words}, got {shown(value)}; for example `{name}={default!r}`"
    )


# Names with options ----------------------------------------------------------------------------


class Call(NamedTuple):
    """A name with options, as in `dsgd(steps=5) @ erdos_renyi(p=0.3)`.

    Example:
        >>> call = config.parse("dsgd(steps=5) @ erdos_renyi(p=0.3)")
        >>> call.name, call.options, call.on.name, call.on.options
        ('dsgd', {'steps': 5}, 'erdos_renyi', {'p': 0.3})
    """

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    on: "Call | None" = None
    text: str = ""  # the options as they were written, without learning rates

    def build(self, registry: Mapping[str, Callable], what: str, *args: Any, **more: Any) -> Any:
        """What the registry makes of it.

        Raises:
            ValueError: an unknown name or option, with the nearest; options that do not fit.
        """
        if self.name not in registry:
            raise ValueError(f"no {what} {shown(self.name)}{nearest(self.name, list(registry))}")
        maker = registry[self.name]
        known = inspect.signature(maker).parameters
        for option in self.options:
            if option not in known:
                raise ValueError(
                    f"{self.name} has no {shown(option)}{nearest(option, list(known))}"
                )
        args, more = (*args, *map(build, self.args)), more | self.built()
        try:
            inspect.signature(maker).bind(*args, **more)
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}; it takes {', '.join(known)}") from error
        return maker(*args, **more)

    def built(self) -> dict[str, Any]:
        """The options, with components made."""
        return {name: build(value) for name, value in self.options.items()}

    def given(self, registry: Mapping[str, Callable], option: str, value: Any) -> "Call | None":
        """The same with another value of an option; None if it has no such option."""
        names = list(inspect.signature(registry[self.name]).parameters)
        if option not in names:
            return None
        options = dict(zip(names, self.args)) | self.options | {option: value}
        return parse(str(Call(self.name, (), options, self.on)))

    def __str__(self) -> str:
        """What `parse` reads."""
        options = [*map(_text, self.args), *(f"{k}={_text(v)}" for k, v in self.options.items())]
        on = f" @ {self.on}" if self.on else ""
        return self.name + (f"({', '.join(options)})" if options else "") + on


def parse(text: str) -> Call:
    """A name with options in brackets, and maybe `@ graph`: data, never code.

    Raises:
        ValueError: anything else.

    Example:
        >>> config.parse("choco(compress=topk(0.1)) @ ring").options["compress"].args
        (0.1,)
    """
    try:
        with warnings.catch_warnings():  # of names that are nearly numbers, of backslashes
            warnings.simplefilter("ignore")
            return _call(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"cannot read {shown(text)}; write a name, with options in brackets: "
            "'fedprox(mu=0.1)', 'dsgd @ ring', 'choco(compress=topk(0.1)) @ torus'"
        ) from error


def _call(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        return _call(node.left)._replace(on=_call(node.right))
    if isinstance(node, ast.Name):
        return Call(node.id.lower(), (), {})
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("not a name")
    options = {str(k.arg): _value(k.value) for k in node.keywords}
    shown = [
        ast.unparse(k.value if isinstance(k.value, ast.Call) else k)
        for k in node.keywords
        if k.arg != "lr"
    ]
    text = f"({', '.join(shown)})" if shown else ""
    return Call(node.func.id.lower(), tuple(map(_value, node.args)), options, None, text)


def _value(node) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Name) and node.id == "inf":
        return float("inf")
    return _call(node)


def _text(value):
    value = plain(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value) if isinstance(value, Call) else repr(value)


def build(value: Any) -> Any:
    """The component that a `Call` names; other values as they are.

    Example:
        >>> config.build(config.parse("topk(0.1)"))
        TopK(fraction=0.1)
    """
    return value.build(components(), "component") if isinstance(value, Call) else value


# Registries that are not at home elsewhere -----------------------------------------------------


def components() -> dict[str, Callable]:
    """What options may name: solvers, compressors, robust rules."""
    from jaxfl import compress, local, robust

    return {
        name.lower(): thing
        for module in (local, compress, robust)
        for name, thing in vars(module).items()
        if inspect.isclass(thing) and thing.__module__ == module.__name__ and name[0].isupper()
    }


def partitioners() -> dict[str, Callable]:
    """How data may be split among clients."""
    from jaxfl import data

    names = ("iid", "dirichlet", "shards", "labels_per_client", "quantity", "natural")
    return {name: getattr(data, name) for name in names}


def adversaries() -> dict[str, Callable]:
    """What Byzantine clients may send."""
    from jaxfl import networks

    names = ("SignFlip", "GaussianNoise", "ALIE", "IPM", "Dissensus")
    return {name.lower(): getattr(networks, name) for name in names}
