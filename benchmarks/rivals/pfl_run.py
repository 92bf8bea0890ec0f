"""pfl-research: FederatedAveraging on its SimulatedBackend, one process, PyTorch.

Users' data are resident tensors; like `pytorch.py`, and unlike pfl's own benchmarks, they are
shuffled whenever a user is drawn.
"""

import asyncio
import logging
from functools import partial

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from serve import Rival, batches, serve
from torch.nn import functional as F
from torch_models import export, images, load, score


class PFL(Rival):
    def __init__(self, work, data):
        self.data = data
        self.model = load(work, data)
        self.model.loss = lambda x, y: F.cross_entropy(self.model(x), y)
        self.model.metrics = lambda x, y: {"loss": Weighted(float(self.model.loss(x, y)), 1)}
        self.first = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        self.x, self.y = images(data.pop("x")), torch.from_numpy(data["y"]).long()
        self.test = images(data.pop("x_test")), torch.from_numpy(data["y_test"]).long()

    def users(self):
        """Endless cohorts without replacement."""
        clients, cohort = int(self.data["clients"]), int(self.data["cohort"])
        while True:
            yield from torch.randperm(clients)[:cohort].tolist()

    def rows(self, i):
        size = int(self.data["size"])
        return torch.randperm(size) + i * size

    def train(self, rounds, users, rows):
        data = self.data

        def make(i):
            own = rows(i)
            return PyTorchTensorDataset((self.x[own], self.y[own]), user_id=str(i))

        federated = FederatedDataset(make, partial(next, users))
        algorithm = FederatedAveraging()
        algorithm._current_central_iteration = 1  # it evaluates the users of iteration 0
        algorithm.run(
            NNAlgorithmParams(
                central_num_iterations=rounds + 1,
                evaluation_frequency=rounds + 1,
                train_cohort_size=int(data["cohort"]),
                val_cohort_size=None,
            ),
            SimulatedBackend(federated, federated),
            PyTorchModel(
                self.model, torch.optim.SGD, torch.optim.SGD(self.model.parameters(), lr=1.0)
            ),
            NNTrainHyperParams(
                local_batch_size=int(data["batch"]),
                local_num_epochs=1,
                local_learning_rate=float(data["lr"]),
            ),
            send_metrics_to_platform=False,
        )

    def run(self, rounds):
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(self.first[name])
        self.model.train()
        self.train(rounds, self.users(), self.rows)

    def result(self):
        return score(self.model, *self.test)

    def check(self, rounds):
        self.model.eval()  # no dropout
        given = [torch.from_numpy(a.ravel()) for b in batches(self.data, rounds) for a in b]
        self.train(rounds, iter(range(len(given))), given.__getitem__)
        return export(self.model, self.data)


if __name__ == "__main__":
    double = partial(torch.set_default_dtype, torch.float64)
    logging.disable(logging.INFO)
    asyncio.set_event_loop(asyncio.new_event_loop())  # pfl asks for the current one
    works = {w: partial(PFL, w) for w in ("A", "B", "cnn")}
    serve(works, ("pfl", "torch", "numpy"), double, torch.set_num_threads)
