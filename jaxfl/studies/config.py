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


_MOST = 2**31 - 1  # rounds, steps and clients are counted in int32


_LARGEST = 2**53  # whole numbers up to here are floats too


def setting(
    default: Any,
    role: str,
    label: str = "",
    *,
    low: float = -np.inf,
    high: float = np.inf,
    open: str = "",
    names: tuple[str, ...] = (),
    kind: str = "",
    fixed: str = "",
) -> Any:
    """A field of `Config`, with all that is known of it.

    Args:
        default: its value, whose type is that of the field.
        role: "task" (examples, and who holds them), "world" (network, failures, attacks, privacy),
            "tuning" (what whoever trains chooses), "run" (which runs, how long) or "report" (what
            changes no run). Only what has the role "tuning" is ever chosen on validation data.
        label: of an axis; the name by default.
        low, high: the least and the largest number.
        open: which of these are out of range themselves: "(", ")" or "()".
        names: the values that there are.
        kind: of `jaxfl list`, where it holds names.
        fixed: why it cannot be swept.

    Example:
        >>> from jaxfl.studies.config import setting
        >>> epsilon = setting(1.0, "world", "privacy, epsilon", low=0, open="(")
        >>> epsilon.default, epsilon.metadata["role"]
        (1.0, 'world')
    """
    about = {"role": role, "label": label, "low": low, "high": high, "open": open}
    about |= {"names": names, "kind": kind, "fixed": fixed}
    return dataclasses.field(default=default, metadata=about)


def _count(default: int, role: str, label: str = "", *, fixed: str = "") -> Any:
    return setting(default, role, label, low=1, high=_MOST, fixed=fixed)


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

    algorithms: tuple[str, ...] = setting(
        DEFAULT, "run", kind="algorithms", fixed='the axis is called "algorithm"'
    )
    data: str = setting("digits", "task", kind="data")
    clients: int = _count(20, "task")
    partition: str = setting("dirichlet", "task", kind="partitions")
    alpha: float = setting(0.1, "task", "label skew, alpha", low=0, open="(")
    minimum: int = _count(10, "task")
    model: str = setting("mlp(hidden=[32])", "tuning", kind="models")
    graph: str = setting("ring", "world", kind="graphs")
    weights: str = setting("", "tuning", kind="weights")
    rounds: int = _count(
        200, "run", fixed="it is the length of the result; take the largest, and look along `round`"
    )
    every: int = _count(
        20, "run", fixed="all runs are evaluated in the same rounds; set it: `every=10`"
    )
    seeds: int = _count(5, "run", fixed='the axis is called "seed"')
    seed: int = setting(0, "run", low=0, high=_LARGEST)
    lr: tuple[float, ...] = setting((0.03, 0.1, 0.3, 1.0, 3.0), "tuning", "learning rate")
    cohort: int = _count(10, "world", "clients per round")
    steps: int = _count(10, "tuning")
    batch: int | Literal["all"] = _count(16, "tuning")
    precision: str = setting("float32", "tuning")
    byzantine: int = setting(0, "world", "Byzantine clients", low=0)
    adversary: str = setting("signflip", "world", kind="adversaries")
    failures: float = setting(
        0.0, "world", "probability that a link fails", low=0, high=1, open=")"
    )
    churn: float = setting(0.0, "world", low=0, high=1, open=")")
    compute: float = setting(0.01, "world", low=0, open=")")
    latency: float = setting(0.05, "world", low=0, open=")")
    up: float = setting(10e6, "world", low=0, open="(")
    down: float = setting(50e6, "world", low=0, open="(")
    target: float = setting(
        0.0,
        "report",
        open="()",
        fixed="it changes no run; `jaxfl.results.to_target(ds, target)` takes any",
    )
    select: str = setting(
        "auto",
        "report",
        names=("auto", "all", "own"),
        fixed="it changes no run; `jaxfl.results.best` chooses by it: `select='own'`",
    )
    vary: str = setting("run", "run", names=("run", "split", "graph", "all"))
    reference: str = setting(
        "local",
        "report",
        fixed='it changes no run; the axis is called "algorithm": ["fedavg", "local"]',
    )

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
            if name not in FIELDS:
                raise ValueError(f"no setting {shown(name)}{nearest(name, list(FIELDS))}")
        given = (vars(config) if config else {}) | changes
        typed: dict[str, Any] = {
            name: _typed(name, plain(value), FIELDS[name].default) for name, value in given.items()
        }
        made = cls(**typed)
        made._check()
        return made

    def _check(self):
        def need(name, valid, expected, fix=None):
            if not valid:
                got, fix = getattr(self, name), FIELDS[name].default if fix is None else fix
                raise ValueError(
                    f"{name} must be {expected}, got {shown(got)}; use `{name}={fix!r}`"
                )

        for name, field in FIELDS.items():
            value, about = getattr(self, name), field.metadata
            if about["names"]:
                need(name, value in about["names"], f"one of {', '.join(about['names'])}")
            elif isinstance(value, int | float):
                wanted = _wanted(value, about["low"], about["high"], about["open"])
                need(name, not wanted, wanted)
        if not self.partition.startswith("natural"):  # then clients follow from the data
            n = self.clients
            need("cohort", self.cohort <= n, f"at most clients={n}", n)
            need("byzantine", self.byzantine < n, f"below clients={n}", n // 4)
        if self.rounds % self.every:
            below = range(min(self.every, 10_000), 0, -1)
            whole = next(d for d in below if self.rounds % d == 0)
            need("every", False, f"a divisor of rounds={self.rounds}", whole)
        need("algorithms", self.algorithms, "one name or more", ("fedavg",))
        need("lr", _rising(self.lr), "positive and rising", (0.1, 0.3, 1.0))
        most = max(1, MOST // (len(self.algorithms) * len(self.lr)))
        need("seeds", self.seeds <= most, f"at most {most:,} ({MOST:,} runs in all)", 5)


MOST = 1_000_000  # runs of one sweep or comparison


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def role(name: str) -> str:
    """What an axis is for, by its name: that of the field, "tuning" of an algorithm's own.

    Example:
        >>> from jaxfl.studies.config import role
        >>> [role(name) for name in ("alpha", "graph.p", "lr", "mu", "algorithm")]
        ['task', 'world', 'tuning', 'tuning', 'run']
    """
    if name == "algorithm":
        return "run"
    field = FIELDS.get(name.split(".")[0])
    return field.metadata["role"] if field else "tuning"


def long_name(name: str) -> str:
    """What an axis is called.

    Example:
        >>> from jaxfl.studies.config import long_name
        >>> long_name("lr"), long_name("mu")
        ('learning rate', 'mu')
    """
    return (FIELDS[name].metadata["label"] if name in FIELDS else "") or name


def _wanted(value, low, high, open):
    """What a number out of its range must be; nothing of one inside."""
    above = value > low if "(" in open else value >= low
    below = value < high if ")" in open else value <= high
    if above and below:
        return ""
    if np.isfinite((low, high)).all() and isinstance(value, float):
        return f"in {'(' if '(' in open else '['}{low:g}, {high:g}{')' if ')' in open else ']'}"
    if np.isnan(value) or (not below and np.isinf(high)):
        return "finite"
    if above:
        return f"at most {high:,}"
    return f"above {low:g}" if "(" in open else f"at least {low:g}"


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
