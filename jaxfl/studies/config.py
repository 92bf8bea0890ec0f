"""What is compared and swept: one record of settings."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
