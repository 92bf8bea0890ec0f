"""Problems with known optima, and the few words that all oracles share.

Plain NumPy in float64; `x` is always one flat vector `[d]`. A draw is a pair (index, weight), each
`[rows, steps, B]`; an example of weight 0 is padding, a step whose weights are all 0 is frozen.
"""

import numpy as np


class LeastSquares:
    """Examples a `[N, d]`, b `[N]` with losses `(a.x - b)^2 / 2`.

    `clients`, a list of index arrays, is needed only by `n`, `grad_i` and `optimum`.
    """

    def __init__(self, a, b, clients=None):
        self.a, self.b = np.asarray(a, float), np.asarray(b, float)
        self.clients = [] if clients is None else list(clients)

    @property
    def n(self):
        if not self.clients:
            raise ValueError("LeastSquares was made without clients; pass a list of index arrays")
        return len(self.clients)

    def grad(self, x, index, weight):
        """Weighted mean loss and gradient over the examples `index`; zeros if no weight is left."""
        loss, g, total = 0.0, np.zeros_like(x), 0.0
        for j, w in zip(index, weight, strict=True):
            if w != 0:  # the index of a padded example may be anything
                residual = self.a[j] @ x - self.b[j]
                loss += w * 0.5 * residual**2
                g += w * residual * self.a[j]
                total += w
        return (loss / total, g / total) if total else (0.0, g)

    def grad_i(self, i, x):
        """Loss and gradient of client i: the mean over all its examples."""
        index = self.clients[i]
        return self.grad(x, index, np.ones(len(index)))

    def optimum(self):
        """Minimiser of the plain mean of the clients' objectives."""
        h, r = 0.0, 0.0
        for index in self.clients:
            a, b = self.a[index], self.b[index]
            h, r = h + a.T @ a / len(index), r + a.T @ b / len(index)
        return np.linalg.solve(h, r)


class Quadratic:
    """Client objectives `f_i(x) = (x - b_i)' A_i (x - b_i) / 2`; client i's one example is i.

    Args:
        a: A_i, `[n, d, d]`, or their diagonals `[n, d]`.
        b: `[n, d]`.
    """

    def __init__(self, a, b):
        a, self.b = np.asarray(a, float), np.asarray(b, float)
        self.a = a if a.ndim == 3 else np.array([np.diag(row) for row in a])
        self.n, self.d = self.b.shape

    @classmethod
    def q(cls):
        """The canonical problem Q: n = 8, d = 5, heterogeneous and without randomness."""
        i, j = np.arange(8)[:, None], np.arange(5)
        return cls(1 + ((3 * i + 5 * j) % 7) / 2, 2 * np.sin(1.7 * i + 0.9 * j + 0.3))

    def grad_i(self, i, x):
        """Loss and gradient of f_i."""
        g = self.a[i] @ (x - self.b[i])
        return 0.5 * (x - self.b[i]) @ g, g

    def grad(self, x, index, weight):
        """Weighted mean loss and gradient over the clients `index`."""
        loss, g, total = 0.0, np.zeros_like(x), 0.0
        for i, w in zip(index, weight, strict=True):
            if w != 0:
                loss_i, g_i = self.grad_i(i, x)
                loss, g, total = loss + w * loss_i, g + w * g_i, total + w
        return (loss / total, g / total) if total else (0.0, g)

    # Closed forms. A method whose mean update is sum_i W_i (b_i - x) stops at the weighted pull.

    def pull(self, weights):
        """`(sum_i W_i)^-1 sum_i W_i b_i` for matrices W_i `[n, d, d]`."""
        return np.linalg.solve(
            sum(weights), sum(w @ b for w, b in zip(weights, self.b, strict=True))
        )

    def optimum(self):
        """x*, the minimiser of the mean of all f_i; also SCAFFOLD's fixed point."""
        return self.pull(self.a)

    def local_map(self, i, lr, steps, mu=0.0):
        """`M = (I - lr (A_i + mu I))^steps`: steps of gradient descent map x - b to M (x - b)."""
        eye = np.eye(self.d)
        return np.linalg.matrix_power(eye - lr * (self.a[i] + mu * eye), steps)

    def x_fa(self, lr, steps, q=None):
        """FedAvg: `W_i = q_i (I - (I - lr A_i)^K)`; FedCM is `x_fa(beta * lr, K)`."""
        q = np.ones(self.n) if q is None else q
        eye = np.eye(self.d)
        return self.pull([q[i] * (eye - self.local_map(i, lr, steps)) for i in range(self.n)])

    def x_prox(self, lr, steps, mu):
        """FedProx: `W_i = A_i (A_i + mu I)^-1 (I - (I - lr (A_i + mu I))^K)`."""
        eye, pulls = np.eye(self.d), []
        for i in range(self.n):
            contraction = eye - self.local_map(i, lr, steps, mu)
            pulls.append(self.a[i] @ np.linalg.solve(self.a[i] + mu * eye, contraction))
        return self.pull(pulls)

    def x_nova(self, lr, steps):
        """FedNova, and AFA-CS: `W_i = (I - (I - lr A_i)^K_i) / K_i` for `steps` `[n]`."""
        eye = np.eye(self.d)
        return self.pull([(eye - self.local_map(i, lr, k)) / k for i, k in enumerate(steps)])

    def x_speed(self, rho):
        """FedSpeed with the un-normalised ascent and alpha = 1: `W_i = A_i (I + rho A_i)`."""
        return self.pull([a + rho * a @ a for a in self.a])


def limit(step, size):
    """Fixed point `[size]` of an affine map, from its values at 0 and at the unit vectors."""
    start = step(np.zeros(size))
    linear = np.column_stack([step(e) - start for e in np.eye(size)])
    return np.linalg.solve(np.eye(size) - linear, start)


def whole(ids, steps=1):
    """The samples of one pass of a Quadratic: slot r takes `steps` full gradients of `ids[r]`."""
    index = np.tile(np.asarray(ids)[:, None, None], (1, steps, 1))
    return [[(index, np.ones(index.shape))]]


def live(draw, r):
    """The steps (index `[B]`, weight `[B]`) of row r that are not frozen."""
    index, weight = np.asarray(draw[0]), np.asarray(draw[1], float)
    return [(i, w) for i, w in zip(index[r], weight[r], strict=True) if np.any(w != 0)]


def mean(losses):
    """Plain mean; NaN where there is nothing to average."""
    return float(sum(losses) / len(losses)) if losses else float("nan")


def participants(cohort):
    """(slot, client, weight normalised over the slots) of the slots that are not empty."""
    idx, weight = np.asarray(cohort["idx"]), np.asarray(cohort["weight"], float)
    return [(r, int(idx[r]), w / weight.sum()) for r, w in enumerate(weight) if w != 0]


def nodes(graph):
    """Mixing matrix `[n, n]` and the list of the active nodes."""
    w = np.asarray(graph["W"], float)
    active = np.asarray(graph.get("active", np.ones(len(w), bool)))
    return w, [i for i in range(len(w)) if active[i]]


def mix(w, x):
    """`x_i <- sum_j W_ij x_j`."""
    return np.array([w[i] @ x for i in range(len(w))])


def stacked(x0, n):
    """One float64 copy of x0 per client `[n, d]`; an x0 that is stacked already is copied."""
    x0 = np.asarray(x0, float)
    return np.tile(x0, (n, 1)) if x0.ndim == 1 else x0.copy()
