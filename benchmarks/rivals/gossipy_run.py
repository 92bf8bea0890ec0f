"""gossipy's GossipSimulator with PUSH and MERGE_UPDATE.

Timed runs do not evaluate, as gossipy's five scikit-learn scores per node would take longer than
the simulation; the mean test accuracy of all nodes, after every round, comes from one product and
it and the set-up are reported as `outside`, the seconds of the clock that are not simulation.
`--check FILE` writes what a run drew, from which `check.py` computes the same models.
"""

# ruff: noqa: E402  (a module must be replaced first)
import sys
import time
import types
from functools import partial

# gossipy imports it for image sets only, and PyPI's build does not load beside a CPU-only PyTorch
sys.modules["torchvision"] = types.ModuleType("torchvision")

import gossipy
import gossipy.model.handler
import numpy as np
import torch
from gossipy.core import AntiEntropyProtocol, CreateModelMode, StaticP2PNetwork, UniformDelay
from gossipy.data import DataDispatcher
from gossipy.data.handler import ClassificationDataHandler
from gossipy.model.handler import TorchModelHandler
from gossipy.model.nn import LogisticRegression
from gossipy.node import GossipNode
from gossipy.simul import GossipSimulator, SimulationEventReceiver
from serve import Rival, serve

_auc = gossipy.model.handler.roc_auc_score
# gossipy calls .astype on it; scikit-learn now returns a Python float
gossipy.model.handler.roc_auc_score = lambda *a: np.float64(_auc(*a))


class Delay(UniformDelay):
    """Tells the recorder when a message that was not dropped arrives."""

    recorder = None

    def get(self, msg):
        delay = super().get(msg)
        self.recorder.arrives(msg.timestamp + delay)
        return delay


class Recorder(SimulationEventReceiver):
    """The learning curve and, as far as gossipy tells, the messages."""

    def __init__(self, nodes, delta, test):
        self.nodes, self.delta, self.test = nodes, delta, test
        self.curve, self.messages, self.seconds = [], [], 0.0

    def update_message(self, failed, msg=None):
        if not failed:  # dropped, until `arrives`; every PUSH is announced when it is sent
            self.messages.append([msg.sender, msg.timestamp, -1, msg.receiver, 1])

    def arrives(self, t):
        self.messages[-1][2:5:2] = t, 0

    def update_timestep(self, t):
        if (t + 1) % self.delta == 0:
            start = time.perf_counter()
            self.curve.append(self.accuracy())
            self.seconds += time.perf_counter() - start

    def update_end(self):
        pass

    @torch.no_grad()
    def accuracy(self):
        (x, y), models = self.test, [n.model_handler.model.model for n in self.nodes.values()]
        w, b = torch.stack([m.weight for m in models]), torch.stack([m.bias for m in models])
        z = torch.einsum("bi,noi->nbo", x, w) + b[:, None]
        return (z.argmax(-1) == y).float().mean().item()


class Gossip(Rival):
    def __init__(self, data):
        self.data, self.runs = data, 0
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"]).long()
        self.test = torch.from_numpy(data["x_test"]), torch.from_numpy(data["y_test"]).long()
        handler = ClassificationDataHandler(x, y, test_size=0)
        self.dispatcher = DataDispatcher(
            handler, n=len(data["count"]), eval_on_user=False, auto_assign=False
        )
        own = [list(range(a, a + n)) for a, n in zip(data["start"].tolist(), data["count"])]
        self.dispatcher.set_assignments(own, None)

    def build(self):
        """A fresh network, its models trained once as gossipy does, before the first message."""
        data = self.data
        gossipy.CACHE.clear()
        gossipy.set_seed(self.runs)
        net = LogisticRegression(data["x"].shape[1], 2)
        with torch.no_grad():
            net.model.weight.copy_(torch.from_numpy(data["init/head/kernel"].T))
            net.model.bias.copy_(torch.from_numpy(data["init/head/bias"]))
        nodes = GossipNode.generate(
            data_dispatcher=self.dispatcher,
            p2p_net=StaticP2PNetwork(len(data["count"]), data["adjacency"]),
            model_proto=TorchModelHandler(
                net=net,
                optimizer=torch.optim.SGD,
                optimizer_params={"lr": float(data["lr"])},
                criterion=torch.nn.CrossEntropyLoss(),
                local_epochs=1,
                batch_size=int(data["batch"]),
                create_model_mode=CreateModelMode.MERGE_UPDATE,
            ),
            round_len=int(data["delta"]),
            sync=True,
        )
        delay = Delay(0, int(data["delay"]))
        self.simulator = GossipSimulator(
            nodes=nodes,
            data_dispatcher=self.dispatcher,
            delta=int(data["delta"]),
            protocol=AntiEntropyProtocol.PUSH,
            drop_prob=float(data["drop"]),
            online_prob=1.0,
            delay=delay,
        )
        self.recorder = delay.recorder = Recorder(nodes, int(data["delta"]), self.test)
        self.simulator.add_receiver(self.recorder)
        self.simulator.init_nodes()

    def run(self, rounds):
        start = time.perf_counter()
        self.build()
        self.setup = time.perf_counter() - start
        self.simulator.start(rounds)
        self.runs += 1

    def result(self):
        own = self.setup + self.recorder.seconds
        messages = np.array(self.recorder.messages)
        self.simulator.remove_receiver(self.recorder)
        return {
            "outside": own,  # seconds of the clock spent on set-up and on the curve
            "accuracy": self.recorder.curve[-1],
            "curve": self.recorder.curve,
            "sent": len(messages),
            "dropped": int(messages[:, 4].sum()),
        }

    def check(self, rounds):
        """A run's models, curve, messages and shuffles."""
        shuffles, randperm = [], torch.randperm

        def keep(n):
            shuffles.append(randperm(n))
            return shuffles[-1]

        torch.randperm = keep
        try:
            self.run(rounds)
        finally:
            torch.randperm = randperm
        nodes, largest = self.simulator.nodes.values(), int(self.data["count"].max())
        padded = [np.pad(s.numpy(), (0, largest - len(s)), constant_values=-1) for s in shuffles]
        models = [n.model_handler.model.model for n in nodes]
        return {
            # [messages, 5]: sender, sent, received (-1: dropped), receiver, dropped
            "messages": np.array(self.recorder.messages, np.int32),
            "offset": np.array([n.delta for n in nodes], np.int32),  # of a node within the round
            "shuffles": np.stack(padded).astype(np.int16),  # [updates, most examples], -1 for none
            "rounds": np.int32(rounds),
            "curve": np.array(self.recorder.curve),  # [rounds]
            "kernel": np.stack([m.weight.detach().numpy().T for m in models]),  # [nodes, 57, 2]
            "bias": np.stack([m.bias.detach().numpy() for m in models]),  # [nodes, 2]
        }


if __name__ == "__main__":
    double = partial(torch.set_default_dtype, torch.float64)
    serve(
        {"C": Gossip},
        ("gossipy-dfl", "torch", "scikit-learn", "numpy"),
        double,
        torch.set_num_threads,
    )
