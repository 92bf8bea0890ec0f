"""The loop over clients inside most simulators, in plain PyTorch and without their overhead.

Data are resident tensors, shuffled by one gather per client; one module takes the global
parameters, runs its steps, and is added to the mean.
"""

from functools import partial

import torch
from serve import Rival, batches, serve
from torch.nn.functional import cross_entropy
from torch_models import Strided, export, images, load, score


class Loop(Rival):
    def __init__(self, work, data):
        self.data, self.model = data, load(work, data)
        self.x, self.y = images(data.pop("x")), torch.from_numpy(data["y"]).long()
        self.test = images(data.pop("x_test")), torch.from_numpy(data["y_test"]).long()
        names = ("clients", "size", "cohort", "batch")
        self.clients, self.size, self.cohort, self.batch = (int(data[k]) for k in names)
        self.params = list(self.model.parameters())
        self.first = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.SGD(self.params, lr=float(data["lr"]))

    def run(self, rounds):
        self.model.train()
        x = self.first
        for _ in range(rounds):
            cohort = torch.randperm(self.clients)[: self.cohort].tolist()
            x = self.round(x, (torch.randperm(self.size) + i * self.size for i in cohort))
        self.set(x)

    def round(self, x, rows):
        mean = [torch.zeros_like(p) for p in x]
        for own in rows:
            self.set(x)
            xi, yi = self.x[own], self.y[own]
            for b in range(0, self.size, self.batch):
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(xi[b : b + self.batch]), yi[b : b + self.batch])
                loss.backward()
                self.optimizer.step()
            with torch.no_grad():
                for m, p in zip(mean, self.params):
                    m.add_(p, alpha=1 / self.cohort)
        return mean

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
    """Four of the 64 runs (learning rates x seeds), one after another."""

    runs = 4

    def __init__(self, data):
        super().__init__("A", data)

    def run(self, rounds):
        for seed in range(self.runs):
            torch.manual_seed(seed)
            self.optimizer.param_groups[0]["lr"] = float(self.data["lrs"][seed])
            super().run(rounds)

    def result(self):
        note = "seconds are of 4 runs; 64 one after another take 16 times as long"
        return {**super().result(), "runs": self.runs, "of": 64, "note": note}


if __name__ == "__main__":
    double = partial(torch.set_default_dtype, torch.float64)
    works = {w: partial(Loop, w) for w in ("A", "B", "cnn", "resnet")}
    serve({**works, "F": Sweep}, ("torch", "numpy"), double, torch.set_num_threads)
