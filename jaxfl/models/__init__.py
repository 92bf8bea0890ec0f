"""Models as hashable (init, apply) pairs, losses per example, and adapters.

| name | builder | parameters |
|---|---|---|
| `logistic` | `logistic(inputs, classes)` | 7,850 (784 to 10) |
| `mlp` | `mlp(inputs, classes, hidden)` | 199,210 (784-200-200-10) |
| `fedavg_cnn` | `fedavg_cnn(classes, shape)` | 1,663,370 |
| `cifar_cnn` | `cifar_cnn(classes, shape, dropout)` | 1,626,442 |
| `lenet5` | `lenet5(classes, shape)` | 62,006 |
| `resnet18` | `resnet18(classes, shape, groups)` | 11,173,962 |
| `cnn1d` | `cnn1d(classes, shape, channels)` | 5,210 |
| `factors` | `factors(items, rank)` | items (1 + rank) + 1 + rank |
| `char_lstm` | `char_lstm(vocab)` | 817,872 |
| `word_lstm` | `word_lstm(vocab)` | 4,050,748 |
| `transformer` | `transformer(vocab, width, layers, heads, hidden, length)` | 115,536 |

Parameters are float32, or float64 where `jax_enable_x64` is set; a model computes in the dtype of
its parameters.
"""

from jaxfl.models.conv import Conv, form, grouped, max_pool, serial, shifts
from jaxfl.models.dense import Dense, logistic, mlp
from jaxfl.models.factors import factors
from jaxfl.models.losses import (
    Loss,
    Regularised,
    cross_entropy,
    regularised,
    sequence_cross_entropy,
    squared_error,
)
from jaxfl.models.model import Model, from_functions, from_linen, from_nnx
from jaxfl.models.norm import GroupNorm
from jaxfl.models.registry import MODELS, make
from jaxfl.models.sequence import LSTM, char_lstm, transformer, word_lstm
from jaxfl.models.vision import cifar_cnn, cnn1d, fedavg_cnn, lenet5, resnet18

__all__ = [
    "LSTM",
    "MODELS",
    "Conv",
    "Dense",
    "GroupNorm",
    "Loss",
    "Model",
    "Regularised",
    "char_lstm",
    "cifar_cnn",
    "cnn1d",
    "cross_entropy",
    "factors",
    "fedavg_cnn",
    "form",
    "from_functions",
    "from_linen",
    "from_nnx",
    "grouped",
    "lenet5",
    "logistic",
    "make",
    "max_pool",
    "mlp",
    "regularised",
    "resnet18",
    "sequence_cross_entropy",
    "serial",
    "shifts",
    "squared_error",
    "transformer",
    "word_lstm",
]
