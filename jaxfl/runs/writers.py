"""Where the metrics of a run go, between its chunks of rounds; nothing is written from inside it.

A writer is anything with `write(round, values)` and `close()`. One that also has `resume(round)` is
told where a checkpointed run goes on, and forgets what it wrote after that round.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from jaxfl.engine.simulate import mean_loss
from jaxfl.runs.folder import text


@runtime_checkable
class Writer(Protocol):
    """What `jaxfl.run(..., writers=[...])` takes.

    Example:
        >>> class Print:
        ...     def write(self, round, values):
        ...         print(round, values)
        ...     def close(self):
        ...         pass
        >>> isinstance(Print(), jaxfl.writers.Writer)
        True
    """

    def write(self, round: int, values: Mapping[str, float]) -> None:
        """The metrics after so many rounds."""
        ...

    def close(self) -> None:
        """The run has ended; a later `write` may open again."""
        ...


class JSONLines:
    """One line of JSON per evaluation, `{"round": 20, "train_loss": 0.3, ...}`, appended.

    A number that is not finite becomes null, since JSON has none. Where a checkpointed run goes on,
    lines after that round are dropped, so that the file ends equal to that of an uninterrupted run;
    without a checkpoint, lines are only added.

    Args:
        path: the file; its folder is made.

    Example:
        >>> writer = jaxfl.writers.JSONLines("run.jsonl")
        >>> writer.write(20, {"train_loss": 0.25})
        >>> writer.close()
        >>> from pathlib import Path
        >>> print(Path("run.jsonl").read_text())
        {"round": 20, "train_loss": 0.25}
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def write(self, round: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        finite = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"round": int(round), **finite}) + "\n")

    def resume(self, round: int) -> None:
        """Keeps the lines up to a round; one that was cut off while it was written is not kept."""
        if not self.path.exists():
            return
        before = self.path.read_text(encoding="utf-8", errors="replace")
        kept = [line for line in before.splitlines(keepends=True) if _round(line) <= round]
        if (after := "".join(kept)) != before:
            text(self.path, after)

    def close(self) -> None:
        """Nothing is open between lines."""


def _round(line):
    try:
        return json.loads(line)["round"] if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


class TensorBoard:
    """Scalars for TensorBoard; extra `tensorboard`.

    Where a checkpointed run goes on, TensorBoard hides what was written after that round.

    Args:
        folder: the log directory.

    Example:
        >>> writer = jaxfl.writers.TensorBoard("logs")
        >>> writer.write(20, {"train_loss": 0.25})
        >>> writer.close()
    """

    def __init__(self, folder: str | Path):
        self._make = _extra("tensorboard", "tensorboard.summary", "Writer")
        self.folder, self._writer = Path(folder), None

    def write(self, round: int, values: Mapping[str, float]) -> None:
        """Adds one scalar per value."""
        if self._writer is None:
            self._writer = self._make(os.fspath(self.folder))
        for name, value in values.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class WandB:
    """A run of Weights & Biases; extra `wandb`.

    Args:
        options: of `wandb.init`, such as `project="x"`, `mode="offline"`; with `id="name"`,
            `resume="allow"` a run that goes on stays the same one.

    Example:
        >>> writer = jaxfl.writers.WandB(project="jaxfl", mode="disabled")
        >>> writer.write(20, {"train_loss": 0.25})
        >>> writer.close()
    """

    def __init__(self, **options: Any):
        self._init = _extra("wandb", "wandb", "init")
        self.options, self._run = options, None

    def write(self, round: int, values: Mapping[str, float]) -> None:
        """Logs the values at step `round`."""
        if self._run is None:
            self._run = self._init(**self.options)
        self._run.log(dict(values), step=round)

    def close(self) -> None:
        """Finishes the run."""
        if self._run is not None:
            self._run.finish()
        self._run = None


def _extra(extra, module, name):
    from importlib import import_module

    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise ImportError(
            f'this writer needs the extra {extra!r}: `pip install "jaxfl[{extra}]"`'
        ) from error


class _Metrics:
    """What `run` tells its writers: after every evaluation, or chunk if there is none.

    Args:
        writers: each gets `train_loss` (the mean since the last time), `megabytes`, `grads` and
            `seconds` (so far, as `History.totals` counts them), and the evaluations that are
            numbers.
        every: rounds from evaluation to evaluation, 0 without.
        t: the round from which a checkpointed run goes on; None without checkpoints.
        parts: what was done before it.
    """

    def __init__(self, writers: Sequence[Any], every: int, t: int | None, parts: Sequence[Any]):
        for writer in writers:
            if not isinstance(writer, Writer):
                raise ValueError(
                    f"writers must have `write(round, values)` and `close()`, got {writer!r}; for "
                    'example `writers=[jaxfl.writers.JSONLines("run.jsonl")]`'
                )
        self.writers = writers if jax.process_index() == 0 else []
        self.every, self.total = every, np.zeros((3, 1))
        for history, _ in parts:
            self.total = self._costs(history)[:, -1:]
        for writer in self.writers:
            if t is not None and hasattr(writer, "resume"):
                writer.resume(t)

    def __enter__(self) -> "_Metrics":
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in self.writers:
            writer.close()

    def write(self, t: int, history: Any, evaluations: Any) -> None:
        """One chunk of rounds, which ends before round t."""
        costs = self._costs(history)
        self.total, rounds = costs[:, -1:], len(history.loss)
        every = self.every or rounds
        loss = mean_loss(*(np.reshape(a, (-1, every)) for a in (history.loss, history.grads)))
        scores = {
            jax.tree_util.keystr(path, simple=True, separator="/"): a
            for path, a in jax.tree.leaves_with_path(evaluations)
            if a.ndim == 1
        }
        for k, mean in enumerate(loss):
            bits, grads, seconds = costs[:, every * (k + 1)].tolist()
            values = dict(train_loss=float(mean), megabytes=bits / 8e6, grads=grads)
            values |= {"seconds": seconds, **{name: float(a[k]) for name, a in scores.items()}}
            for writer in self.writers:
                writer.write(t - rounds + every * (k + 1), values)

    def _costs(self, history):
        """Bits, gradients, seconds so far, after every round and before the first: summed one by
        one, so that chunks do not change them."""
        up, down, grads, clients, seconds = (
            np.asarray(a, np.float64)
            for a in (history.up, history.down, history.grads, history.clients, history.seconds)
        )
        now = np.stack([(up + down) * clients, grads * clients, seconds])
        return np.add.accumulate(np.concatenate([self.total, now], 1), axis=1)
