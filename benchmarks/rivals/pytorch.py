"""The loop over clients inside most simulators, in plain PyTorch and without their overhead.

Data are resident tensors, shuffled by one gather per client; one module takes the global
parameters, runs its steps, and is added to the mean. On a GPU that is all the same, with the faster
of the two layouts of images; nothing waits for the device within a round.
"""

import contextlib
from functools import partial

import numpy as np
import torch
from serve import Rival, batches, serve
from torch.nn.functional import cross_entropy
from torch_models import Strided, export, images, load, score


class Torch(Rival):
    device = "cpu"
    autocast = contextlib.nullcontext

    @classmethod
    def prepare(cls, device, precision):
        """TF32 in products and convolutions alike, or in neither."""
        cls.device = device
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = True
        if precision == "bfloat16":  # of the arithmetic: parameters stay float32
            cls.autocast = partial(torch.autocast, device, torch.bfloat16)

    def run(self, rounds):
        self.rounds(rounds)
        if self.device == "cuda":
            torch.cuda.synchronize()

    def memory(self):
        if self.device == "cpu":
            return {}
        return {"device megabytes": torch.cuda.max_memory_allocated() / 1e6}

    def move(self, a):
        return a.to(self.device, non_blocking=True)


class Loop(Torch):
    def __init__(self, work, data):
        self.data, self.model = data, load(work, data).to(self.device)
        self.x, self.y = map(self.move, (images(data.pop("x")), torch.from_numpy(data["y"]).long()))
        test = images(data.pop("x_test")), torch.from_numpy(data["y_test"]).long()
        self.test = tuple(map(self.move, test))
        names = ("clients", "size", "cohort", "batch", "epochs")
        self.clients, self.size, self.cohort, self.batch, self.epochs = (
            int(data[k]) for k in names
        )
        self.params = list(self.model.parameters())
        self.first = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.SGD(self.params, lr=float(data["lr"]))
        if self.device == "cuda" and self.x.ndim == 4:
            self.choices = ("channels last", "channels first")

    def choose(self, name):
        last = name == "channels last"
        form = torch.channels_last if last else torch.contiguous_format
        self.model.to(memory_format=form)
        self.x = self.x.contiguous(memory_format=form)
        self.first = [a.contiguous(memory_format=form) if a.ndim == 4 else a for a in self.first]

    def rounds(self, rounds):
        self.model.train()
        x = self.first
        for _ in range(rounds):
            cohort = torch.randperm(self.clients)[: self.cohort].tolist()
            if self.device == "cpu":  # one client's shuffle at a time
                x = self.round(x, (self.shuffles(i) for i in cohort))
            else:  # one copy for all
                x = self.round(x, self.move(torch.stack([self.shuffles(i) for i in cohort])))
        self.set(x)

    def shuffles(self, i):
        """Rows of client i, shuffled once for each epoch."""
        orders = [torch.randperm(self.size) for _ in range(self.epochs)]
        return torch.cat(orders) + i * self.size

    def round(self, x, rows):
        mean = [torch.zeros_like(p) for p in x]
        for own in rows:
            self.set(x)
            xi, yi = self.x[own], self.y[own]
            for b in range(0, len(own), self.batch):
                self.step(xi[b : b + self.batch], yi[b : b + self.batch])
            with torch.no_grad():
                for m, p in zip(mean, self.params):
                    m.add_(p, alpha=1 / self.cohort)
        return mean

    def step(self, x, y):
        self.optimizer.zero_grad()
        with self.autocast():
            loss = cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def set(self, x):
        for p, a in zip(self.params, x):
            p.copy_(a)

    def result(self):
        return score(self.model, *self.test)

    def check(self, rounds):
        self.model.eval()  # no dropout
        for module in self.model.modules():
            if isinstance(module, Strided):
                module.exact = True
        x = self.first
        for rows in batches(self.data, rounds):
            x = self.round(x, (torch.from_numpy(own.ravel()) for own in rows))
        self.set(x)
        return export(self.model, self.data)


class Sweep(Loop):
    """Four of all runs (learning rates x seeds), one after another."""

    runs = 4

    def __init__(self, data):
        super().__init__("A", data)
        self.of = len(data["lrs"]) * int(data["seeds"])

    def rounds(self, rounds):
        for seed in range(self.runs):
            torch.manual_seed(seed)
            self.optimizer.param_groups[0]["lr"] = float(
                self.data["lrs"][seed % len(self.data["lrs"])]
            )
            super().rounds(rounds)

    def result(self):
        times = self.of / self.runs
        note = f"seconds are of 4 runs; {self.of} one after another take {times:g} times as long"
        return {**super().result(), "runs": self.runs, "of": self.of, "note": note}


class Decentralised(Loop):
    """D-SGD: the module's parameters are views of one node's rows; mixing is a matrix product."""

    def __init__(self, data):
        super().__init__("E", data)
        self.w = self.move(torch.from_numpy(data["w"]).to(self.params[0].dtype))

    def rounds(self, rounds):
        x = self.stacked()
        for _ in range(rounds):
            drawn = torch.randint(self.size, (self.clients, self.batch))
            x = self.round(x, self.move(drawn + self.size * torch.arange(self.clients)[:, None]))
        self.end(x)

    def stacked(self):
        return [a.expand(self.clients, *a.shape).clone() for a in self.first]

    def round(self, x, rows):
        for i, own in enumerate(rows):
            for p, a in zip(self.params, x):
                p.data = a[i]
            self.step(self.x[own], self.y[own])
        return [(self.w @ a.flatten(1)).view_as(a) for a in x]

    def end(self, x):
        """The model is the mean of all nodes'."""
        self.x_end = x
        for p, a in zip(self.params, x):
            p.data = a.mean(0)

    def check(self, rounds):
        x = self.stacked()
        for rows in batches(self.data, rounds):
            x = self.round(x, torch.from_numpy(np.stack(rows)[:, 0]))
        self.end(x)
        return export(self.model, self.data)


class Mixing(Torch):
    """A round is one product of the matrix [n, n] with the models [n, d]."""

    choices = ("dense", "sparse")

    def __init__(self, data):
        self.dense = self.move(torch.from_numpy(data["w"]).to(torch.get_default_dtype()))
        torch.manual_seed(int(data["seed"]))
        self.first = torch.randn(len(self.dense), int(data["d"]), device=self.device)
        self.w, self.data = self.dense, data

    def choose(self, name):
        self.w = self.dense if name == "dense" else self.dense.to_sparse_csr()

    def rounds(self, rounds):
        self.x = self.first
        for _ in range(rounds):
            self.x = self.w @ self.x

    def result(self):
        return {"variance": self.x.var(0).mean().item()}

    def check(self, rounds):
        self.choose("sparse")
        self.first = torch.from_numpy(self.data["x"]).to(self.dense)
        self.rounds(rounds)
        return {"x": self.x.numpy()}


if __name__ == "__main__":
    double = partial(torch.set_default_dtype, torch.float64)
    works = {w: partial(Loop, w) for w in ("A", "B", "cnn", "resnet")}
    works |= {"D": Mixing, "E": Decentralised, "F": Sweep}
    serve(works, ("torch", "numpy"), double, torch.set_num_threads, Torch.prepare)
