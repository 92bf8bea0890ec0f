"""jaxfl's models in PyTorch, with the same parameters under the same names."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Logistic(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, x):
        return self.head(x)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense1, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(F.relu(self.dense1(x)))


class CifarCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3)
        self.dense, self.head = nn.Linear(14 * 14 * 64, 128), nn.Linear(128, 10)
        self.drop1, self.drop2 = nn.Dropout(0.25), nn.Dropout(0.5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.relu(self.dense(self.drop1(x).flatten(1)))
        return self.head(self.drop2(x))


class FedAvgCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.dense, self.head = nn.Linear(7 * 7 * 64, 512), nn.Linear(512, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(F.relu(self.dense(x.flatten(1))))


class Strided(nn.Conv2d):
    """3x3 with stride 2; PyTorch pads an even image before, XLA's SAME after its pixels.

    `exact` pads as XLA does, for comparison of numbers; it costs a copy, so timed runs do not.
    """

    exact = False

    def forward(self, x):
        if self.exact:
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, stride=2)
        return super().forward(x)


class Block(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        first = Strided if stride == 2 else nn.Conv2d
        self.conv1 = first(inputs, features, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(32, features), nn.GroupNorm(32, features)
        if inputs != features:
            self.conv3 = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.norm3 = nn.GroupNorm(32, features)

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + (self.norm3(self.conv3(x)) if hasattr(self, "conv3") else x))


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.GroupNorm(32, 64)
        inputs = 64
        for stage in range(4):
            for block in range(2):
                features, stride = 64 * 2**stage, 2 if stage and not block else 1
                self.add_module(f"block{stage + 1}{block + 1}", Block(inputs, features, stride))
                inputs = features
        self.head = nn.Linear(512, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        for stage in range(4):
            for block in range(2):
                x = self.get_submodule(f"block{stage + 1}{block + 1}")(x)
        return self.head(x.mean((2, 3)))


MODELS = {"A": Logistic, "B": CifarCNN, "cnn": FedAvgCNN, "resnet": ResNet18, "E": MLP}
_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def load(work: str, data: Any) -> nn.Module:
    """The model of a work item with its initial parameters."""
    model = MODELS[work]()
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name in _initial(data):
            *path, leaf = name.split("/")
            p = state.pop(".".join([*path, _NAMES[leaf]]))
            p.copy_(torch.from_numpy(_to_torch(name, data["init/" + name], model)))
    assert not state, f"without initial value: {list(state)}"
    return model.to(memory_format=torch.channels_last)  # on the CPU a sixth faster for B


def export(model: nn.Module, data: Any) -> dict[str, np.ndarray]:
    """The parameters of a model by jaxfl's names, in its layouts."""
    state, out = dict(model.named_parameters()), {}
    for name in _initial(data):
        *path, leaf = name.split("/")
        a = state[".".join([*path, _NAMES[leaf]])].detach().numpy()
        if a.ndim == 4:
            a = a.transpose(2, 3, 1, 0)
        elif a.ndim == 2:
            a, side = a.T, _side(name, model)
            if side:
                a = a.reshape(-1, side, side, a.shape[-1]).transpose(1, 2, 0, 3)
                a = a.reshape(-1, a.shape[-1])
        out[name] = a
    return out


def _initial(data):
    return [k.removeprefix("init/") for k in data if k.startswith("init/")]


def _side(name, model):
    """Of the image that a dense layer receives flattened, channels first here and last in jaxfl."""
    if name != "dense/kernel":
        return 0
    return math.isqrt(model.dense.in_features // model.conv2.out_channels)


def _to_torch(name, a, model):
    if a.ndim == 4:
        a = a.transpose(3, 2, 0, 1)
    elif a.ndim == 2:
        side = _side(name, model)
        if side:
            a = a.reshape(side, side, -1, a.shape[-1]).transpose(2, 0, 1, 3)
        a = a.reshape(-1, a.shape[-1]).T
    return np.ascontiguousarray(a)


def images(x: np.ndarray) -> torch.Tensor:
    """Examples as a resident tensor: [N, C, H, W] for images, whose channels lie last in memory."""
    return torch.from_numpy(np.moveaxis(x, -1, 1) if x.ndim == 4 else x)


@torch.no_grad()
def score(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Loss and accuracy on a test set, without dropout."""
    training = model.training
    model.eval()
    logits = torch.cat([model(part) for part in x.split(100)])  # the peak is that of training
    model.train(training)
    hits = (logits.argmax(-1) == y).float().mean()
    return {"loss": F.cross_entropy(logits, y).item(), "accuracy": hits.item()}
