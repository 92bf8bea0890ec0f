"""DADAO: the decay rate does not depend on the graph, the communications do, and by how much.

Claims, on heterogeneous quadratics with spectrum linspace(1, 20), t = 800 seconds:

1. mean |x_i - x*|^2 decays at least as exp(-eta t), eta = sqrt(mu / L) / (8 sqrt(2)) (the paper's
   theorem as recalled), at about the same rate on every graph;
2. exchanges per second are sqrt(2 chi1 chi2), so that those per digit grow as (chi1 chi2)^(1/2);
3. with half of the exchanges (chi1 chi2 = 2 instead of 1/2) it diverges.

    python benchmarks/dadao.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import record

from jaxfl import Clients, problems, simulate
from jaxfl.algorithms.asynchronous.dadao import DADAO
from jaxfl.networks import graphs, spectra
from jaxfl.networks.clocks import dadao_rates, poisson, to_events

ROUNDS, UNIT, SEEDS = 80, 10.0, 5
L, MU = 20.0, 1.0
CASES = {
    10: ("ring", "path", "complete", "star", "binary_tree", "regular"),
    20: ("ring", "complete"),
    40: ("ring", "complete"),
}


def problem(n, d=4, seed=0):
    """f_i(x) = (x - b_i)' A_i (x - b_i) / 2, eigenvalues linspace(1, 20), b_i ~ 3 N(0, I)."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((n, d, d)))[0]
    a = (q * np.linspace(MU, L, d)) @ q.swapaxes(1, 2)
    b = 3 * rng.standard_normal((n, d))
    optimum = np.linalg.solve(a.sum(0), (a @ b[:, :, None]).sum(0)[:, 0])
    return {"a": (a + a.swapaxes(1, 2)) / 2, "b": b}, optimum


def errors(n, chi1, timelines, waves):
    """mean |x_i - x*|^2 after every round, of runs over timelines of one shape: [runs, rounds]."""
    data, optimum = problem(n)
    partition = (np.arange(n), np.arange(n), np.ones(n, int))
    clients = Clients.make(data, partition, problems.quadratic_loss, batch=1)
    optimum = jnp.asarray(optimum)

    def run(chi1, timeline):
        return simulate(
            DADAO(smoothness=L, convexity=MU, chi1=chi1),
            clients,
            timeline,
            jnp.zeros(4),
            jax.random.key(0),
            rounds=ROUNDS,
            every=1,
            evaluate=lambda state: jnp.square(state.params - optimum[None]).sum(1).mean(),
        ).evaluations

    stacked = jax.tree.map(lambda *a: jnp.stack(a), *timelines)
    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(chi1), stacked))


def rate(error):
    """The slope of -log error over time, from t = 100 to the end, rounding or overflow."""
    t = UNIT * np.arange(1, len(error) + 1)
    with np.errstate(all="ignore"):
        use = (t > 100) & np.isfinite(np.log(error)) & (error > 1e-20) & (error < 1e200)
    if use.sum() < 3:  # overflowed early: what there is
        use = np.isfinite(error) & (error < 1e200)
    return -np.polyfit(t[use], np.log(error[use]), 1)[0]


def estimate(values):
    """Mean and its standard error."""
    values = np.asarray(values, float)
    return {"mean": values.mean(), "error": values.std(ddof=1) / np.sqrt(len(values))}


def rows(n, names):
    """One result per graph."""
    keys = [
        (name, factor, seed) for name in names for factor in (1.0, 0.5) for seed in range(SEEDS)
    ]
    rates = {(name, f): dadao_rates(graphs.make(name, n), f) for name in names for f in (1.0, 0.5)}
    draw = lambda name, factor, seed, **options: poisson(
        graphs.make(name, n),
        ROUNDS,
        edge_rates=rates[name, factor]["rate"],
        unit=UNIT,
        seed=seed,
        cap=(max(2, n // 10), max(3, n // 4)),
        **options,
    )
    waves = max(draw(*key).nets.grad.shape[1] for key in keys)
    timelines = [draw(*key, waves=waves) for key in keys]
    error = errors(n, [rates[name, f]["chi1"] for name, f, _ in keys], timelines, waves)
    exchanges = [(to_events(timeline)[2] < n).sum() for timeline in timelines]
    for name in names:
        graph = graphs.make(name, n)
        unit_rate = spectra.laplacian(graph, 1 / graph.number_of_edges())
        chi1, chi2 = spectra.chi1(unit_rate), spectra.chi2(unit_rate)
        full, half = ([k for k, key in enumerate(keys) if key[:2] == (name, f)] for f in (1.0, 0.5))
        decay = estimate([rate(error[k]) for k in full])
        per_second = estimate([exchanges[k] / (ROUNDS * UNIT) for k in full])
        yield {
            "graph": name,
            "n": n,
            "chi1": chi1,
            "chi2": chi2,
            "sqrt(2 chi1 chi2)": float(np.sqrt(2 * chi1 * chi2)),
            "exchanges_per_second": per_second,
            "decay_rate": decay,
            "exchanges_per_e_fold": per_second["mean"] / decay["mean"],
            "final_error": float(np.exp(np.mean(np.log(error[full, -1])))),
            "decay_rate_with_half_the_exchanges": estimate([rate(error[k]) for k in half]),
        }


def main():
    jax.config.update("jax_enable_x64", True)
    table = [row for n, names in CASES.items() for row in rows(n, names)]
    bound = float(np.sqrt(MU / L) / (8 * np.sqrt(2)))
    x = np.log([row["chi1"] * row["chi2"] for row in table])
    power = np.polyfit(x, np.log([row["exchanges_per_e_fold"] for row in table]), 1)[0]
    for row in table:
        print(
            f"{row['graph']:12} n={row['n']:3}  rate {row['decay_rate']['mean']:.4f}"
            f" +- {row['decay_rate']['error']:.4f}"
            f"  exchanges/s {row['exchanges_per_second']['mean']:8.2f}"
            f" (theory {row['sqrt(2 chi1 chi2)']:8.2f})"
            f"  half: {row['decay_rate_with_half_the_exchanges']['mean']:.3f}"
        )
    print(f"bound: rate at least {bound:.4f}; exchanges per e-fold ~ (chi1 chi2)^{power:.3f}")
    claims = {
        "every rate exceeds the bound": all(r["decay_rate"]["mean"] > bound for r in table),
        "largest rate / smallest rate": max(r["decay_rate"]["mean"] for r in table)
        / min(r["decay_rate"]["mean"] for r in table),
        "power of chi1 chi2 in exchanges per e-fold (theory 0.5)": power,
        "all diverge with half of the exchanges": all(
            r["decay_rate_with_half_the_exchanges"]["mean"] < 0 for r in table
        ),
    }
    record("dadao", {"bound": bound, "claims": claims, "graphs": table})


if __name__ == "__main__":
    main()
