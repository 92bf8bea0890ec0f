"""Buffered arrivals: clients of unequal speed, whose updates fill a server's buffer."""

import heapq

import numpy as np
from numpy.typing import ArrayLike

from jaxfl.networks.adversaries import Send
from jaxfl.networks.graphs import lookup
from jaxfl.networks.nets import Arrivals
from jaxfl.networks.timelines import DURATIONS, Seed, Timeline, _between, _timeline
from jaxfl.types import Count, whole


def arrivals(
    n: Count,
    buffer: Count,
    rounds: Count,
    *,
    durations: str = "half_normal",
    concurrency: Count | None = None,
    scale: float | ArrayLike = 1.0,
    seed: Seed = 0,
) -> Timeline:
    """A server that closes a round whenever `buffer` updates have arrived, as in FedBuff.

    At any time `concurrency` clients train. When an update arrives, its place goes to a client
    drawn uniformly from the idle ones, with the newest model. Updates that arrive at the same
    instant are all received before their places are given away.

    A client whose update waits in the buffer is not idle: it is drawn again only after the round
    closes, so that no client is twice in one round. If nobody is idle, places stay free until then;
    with concurrency n (the default) all c who arrived restart together from the new model.

    Args:
        n: number of clients.
        buffer: updates per round, 1 to n.
        rounds: for how many the schedule is drawn.
        durations: law of the duration of a job, of mean 1: "constant", "uniform" (on [0, 2]),
            "exponential", "half_normal", "lognormal" (sigma = 1).
        concurrency: clients that train at once, 1 to n; n by default.
        scale: seconds by which durations are multiplied, > 0, a number or one per client `[n]`.
        seed: a number or a NumPy generator.

    Returns:
        A `Timeline` of `Arrivals`. The age of an update is the number of rounds that closed between
        the client's download and its arrival.

    Raises:
        ValueError: sizes out of range, an unknown law, or a scale that is not positive.

    Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered
        Asynchronous Aggregation", AISTATS 2022, arXiv 2106.06639; Fraboni, Vidal, Kameni, Lorenzi,
        JMLR 2023, arXiv 2206.10189 (their FedBuff has concurrency n).

    Example:
        >>> network = networks.arrivals(10, buffer=3, rounds=50, durations="exponential")
        >>> net = network(0, jax.random.key(0))
        >>> net.age.tolist(), float(net.participants())
        ([0, 0, 0], 3.0)
    """
    n = whole("n", n)
    concurrency = n if concurrency is None else concurrency
    buffer = _between("buffer", buffer, 1, n)
    concurrency = _between("concurrency", concurrency, 1, n)
    rounds = _between("rounds", rounds, 1)
    seconds = np.broadcast_to(np.asarray(scale, float), (n,))
    if not (seconds > 0).all():
        raise ValueError(f"scale must be positive seconds, got {seconds.min():g}; use `scale=1.0`")
    rng = np.random.default_rng(seed)
    jobs = concurrency + buffer * rounds
    length = lookup(DURATIONS, durations, "durations")(rng, jobs).tolist()
    coin = rng.random(jobs).tolist()
    idx, age, end = _serve(buffer, rounds, concurrency, seconds.tolist(), length, coin)
    idx = np.array(idx).reshape(rounds, buffer)
    live = np.ones(idx.shape, bool)
    nets = Arrivals(
        t=np.arange(rounds),
        idx=idx,
        age=np.array(age).reshape(rounds, buffer),
        weight=live.astype(float),
        send=Send(~live, idx, live),
        elapsed=np.diff(end, prepend=0.0),
    )
    return _timeline(nets, n)


def _serve(buffer, rounds, concurrency, seconds, length, coin):
    """The server's event loop: clients and ages in order of arrival, and when rounds closed."""
    idle, waiting, training = list(range(len(seconds))), [], []
    idx, age, end = [], [], []
    now, job, places = 0.0, 0, concurrency
    while len(end) < rounds:
        while places and idle:
            i = int(coin[job] * len(idle))
            idle[i], idle[-1] = idle[-1], idle[i]
            client = idle.pop()
            # equal times in order of the job, which is a random order of clients
            heapq.heappush(training, (now + length[job] * seconds[client], job, client, len(end)))
            job, places = job + 1, places - 1
        now = training[0][0]
        # a tolerance: 3 * .1 != .1 + .1 + .1
        while training and training[0][0] <= now * (1 + 1e-12) and len(end) < rounds:
            _, _, client, version = heapq.heappop(training)
            idx.append(client)
            age.append(len(end) - version)
            waiting.append(client)
            places += 1
            if len(waiting) == buffer:
                end.append(now)
                idle += waiting
                waiting = []
    return idx, age, end
