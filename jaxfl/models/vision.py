"""Convolutional networks of the federated literature, channels last.

All take images [B, H, W, C], or [B, H, W] for one channel; integers are cast to the dtype of the
parameters. Kernels are drawn LeCun-normal (flax's default), biases are zero, unless said otherwise.
The last layer is called `head`. `form` is that of `jaxfl.models.conv.Conv`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Num

from jaxfl.models.conv import Conv, max_pool
from jaxfl.models.dense import Dense
from jaxfl.models.model import Model, _linen
from jaxfl.models.norm import GroupNorm

Images = Num[Array, "b ..."]
Logits = Num[Array, "b classes"]


def _images(x: Any) -> Any:
    if x.ndim not in (3, 4):
        raise ValueError(
            f"x: expected images [B, H, W] or [B, H, W, C], got {x.shape}. "
            "Use x.reshape(-1, 28, 28, 1)."
        )
    h, w, c = (*x.shape[1:], 1)[:3]
    if (h == 3 and min(w, c) > 4) or (h == 1 and w == c > 4):
        raise ValueError(
            f"x: expected images [B, H, W, C], channels last, got {x.shape}, which look like "
            "[B, C, H, W]. Use x.transpose(0, 2, 3, 1)."
        )
    return x[..., None] if x.ndim == 3 else x


def _vision(name: str, module: nn.Module, shape: tuple[int, ...]) -> Model:
    _images(np.empty((0, *shape)))  # says at once what is wrong with the shape
    return _linen(name, module, shape)


class FedAvgCNN(nn.Module):
    """Two 5x5 convolutions (32, 64), each with 2x2 pooling, one hidden layer."""

    classes: int
    hidden: int
    padding: str
    form: str | None

    @nn.compact
    def __call__(self, x: Images) -> Logits:
        conv = partial(Conv, size=(5, 5), padding=self.padding, form=self.form)
        x = max_pool(nn.relu(conv(32, name="conv1")(_images(x))))
        x = max_pool(nn.relu(conv(64, name="conv2")(x)))
        x = nn.relu(Dense(self.hidden, name="dense")(x.reshape(len(x), -1)))
        return Dense(self.classes, name="head")(x)


class CifarCNN(nn.Module):
    """Two 3x3 convolutions (32, 64), one 2x2 pooling, 128 hidden units, two dropouts."""

    classes: int
    dropout: tuple[float, float]
    form: str | None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Logits:
        conv = partial(Conv, size=(3, 3), padding="VALID", form=self.form)
        x = nn.relu(conv(32, name="conv1")(_images(x)))
        x = max_pool(nn.relu(conv(64, name="conv2")(x)))
        x = nn.Dropout(self.dropout[0], deterministic=not train)(x)
        x = nn.relu(Dense(128, name="dense")(x.reshape(len(x), -1)))
        x = nn.Dropout(self.dropout[1], deterministic=not train)(x)
        return Dense(self.classes, name="head")(x)


class LeNet5(nn.Module):
    """Two 5x5 VALID convolutions (6, 16), each with 2x2 pooling, dense 120 and 84."""

    classes: int
    form: str | None

    @nn.compact
    def __call__(self, x: Images) -> Logits:
        conv = partial(Conv, size=(5, 5), padding="VALID", form=self.form)
        x = max_pool(nn.relu(conv(6, name="conv1")(_images(x))))
        x = max_pool(nn.relu(conv(16, name="conv2")(x)))
        x = nn.relu(Dense(120, name="dense1")(x.reshape(len(x), -1)))
        x = nn.relu(Dense(84, name="dense2")(x))
        return Dense(self.classes, name="head")(x)


class Block(nn.Module):
    """Two 3x3 convolutions with GroupNorm, added to the input (1x1 where the shape changes)."""

    features: int
    stride: int
    norm: Callable[..., Any]
    form: str | None

    @nn.compact
    def __call__(self, x: Num[Array, "b h w c"]) -> Num[Array, "b h2 w2 c2"]:
        conv, stride = partial(Conv, bias=False, form=self.form), (self.stride, self.stride)
        y = conv(self.features, strides=stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.norm(name="norm2")(conv(self.features, name="conv2")(y))
        if x.shape != y.shape:
            x = conv(self.features, size=(1, 1), strides=stride, name="conv3")(x)
            x = self.norm(name="norm3")(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """A 3x3 stem without pooling, then four stages of two blocks (64, 128, 256, 512)."""

    classes: int
    groups: int
    form: str | None

    @nn.compact
    def __call__(self, x: Images) -> Logits:
        norm = partial(GroupNorm, self.groups)
        stem = Conv(64, bias=False, form=self.form, name="stem")
        x = nn.relu(norm(name="norm")(stem(_images(x))))
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage and not block else 1
                name = f"block{stage + 1}{block + 1}"
                x = Block(64 * 2**stage, stride, norm, self.form, name=name)(x)
        return Dense(self.classes, name="head")(x.mean((1, 2)))


def fedavg_cnn(
    classes: int = 10,
    shape: tuple[int, ...] = (28, 28, 1),
    hidden: int = 512,
    padding: str = "SAME",
    form: str | None = None,
) -> Model:
    """The CNN of FedAvg: 1,663,370 parameters for 28x28 images and 10 classes.

    Args:
        classes: outputs.
        shape: of one image.
        hidden: width of the dense layer; 2048 with 62 classes is LEAF's FEMNIST network.
        padding: "SAME" as published; "VALID" is the variant of many ports (582,026 parameters).
        form: of the convolutions.

    Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of
        Deep Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629.

    Example:
        >>> params = jax.eval_shape(models.fedavg_cnn().init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        1663370
    """
    return _vision("fedavg_cnn", FedAvgCNN(classes, hidden, padding, form), shape)


def cifar_cnn(
    classes: int = 10,
    shape: tuple[int, ...] = (32, 32, 3),
    dropout: tuple[float, float] = (0.25, 0.5),
    form: str | None = None,
) -> Model:
    """The CNN of the CIFAR-10 and EMNIST benchmarks: 1,626,442 parameters for 32x32x3 images.

    Args:
        classes: outputs.
        shape: of one image; (28, 28, 1) gives 1,206,590 parameters with 62 classes.
        dropout: rates after pooling and after the dense layer, static; (0, 0) turns it off.
        form: of the convolutions.

    Source: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated
        Optimization", ICLR 2021, arXiv 2003.00295 (for EMNIST); Granqvist et al.,
        "pfl-research", arXiv 2024, arXiv 2404.06430 (for CIFAR-10).

    Deviations: the CIFAR-10 benchmark draws kernels Glorot-uniform.

    Example:
        >>> params = jax.eval_shape(models.cifar_cnn().init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        1626442
    """
    return _vision("cifar_cnn", CifarCNN(classes, dropout, form), shape)


def lenet5(
    classes: int = 10, shape: tuple[int, ...] = (32, 32, 3), form: str | None = None
) -> Model:
    """LeNet-5 with ReLU and max pooling: 62,006 parameters for 32x32x3 images and 10 classes.

    Args:
        classes: outputs.
        shape: of one image.
        form: of the convolutions.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document
        Recognition", Proceedings of the IEEE 1998.

    Deviations: ReLU, max pooling and full connections, as federated benchmarks use it.

    Example:
        >>> params = jax.eval_shape(models.lenet5().init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        62006
    """
    return _vision("lenet5", LeNet5(classes, form), shape)


class CNN1D(nn.Module):
    """Three convolutions of 25 channels with stride 2, widths 5, 3 and 3, and a linear layer."""

    classes: int
    channels: int
    form: str | None

    @nn.compact
    def __call__(self, x: Num[Array, "..."]) -> Logits:
        x = x.reshape(len(x), 1, x.shape[1], -1)  # an image one pixel high
        for i, width in enumerate((5, 3, 3)):
            layer = Conv(
                self.channels, (1, width), (1, 2), ((0, 0), (1, 1)), form=self.form, name=f"conv{i}"
            )
            x = nn.relu(layer(x))
        return Dense(self.classes, name="head")(x.reshape(len(x), -1))


def cnn1d(
    classes: int = 10,
    shape: tuple[int, ...] = (40,),
    channels: int = 25,
    form: str | None = None,
) -> Model:
    """The convolutional network of MNIST-1D: 5,210 parameters for 40 samples and 10 classes.

    Args:
        classes: outputs.
        shape: of one signal, `(length,)` or `(length, channels)`.
        channels: of every convolution.
        form: of the convolutions.

    Source: Greydanus, Kobak, "Scaling Down Deep Learning with MNIST-1D", ICML 2024,
        arXiv 2011.14439; its code was read.

    Example:
        >>> params = jax.eval_shape(models.cnn1d().init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        5210
    """
    if len(shape) not in (1, 2):
        raise ValueError(
            f"shape: expected (length,) or (length, channels) of a signal, got {shape}. "
            "Use models.lenet5 for images."
        )
    return _linen("cnn1d", CNN1D(classes, channels, form), shape)


def resnet18(
    classes: int = 10,
    shape: tuple[int, ...] = (32, 32, 3),
    groups: int = 32,
    form: str | None = None,
) -> Model:
    """ResNet-18 for small images with GroupNorm: 11,173,962 parameters for 10 classes.

    Args:
        classes: outputs.
        shape: of one image.
        groups: of every GroupNorm, a divisor of 64; 2 and 32 are in use.
        form: of the convolutions.

    Raises:
        ValueError: if `groups` does not divide 64.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016; Wu, He,
        "Group Normalization", ECCV 2018; Hsieh, Phanishayee, Mutlu, Gibbons, "The Non-IID Data
        Quagmire of Decentralized Machine Learning", ICML 2020 (why not BatchNorm).

    Deviations: 3x3 stem and no first pooling, as usual for 32x32 images.

    Example:
        >>> params = jax.eval_shape(models.resnet18(groups=2).init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        11173962
    """
    if groups < 1 or 64 % groups:
        raise ValueError(f"groups: expected a divisor of 64, got {groups}. Use groups=32.")
    return _vision("resnet18", ResNet18(classes, groups, form), shape)
