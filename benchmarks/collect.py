"""The README's table and figure of speed, from the committed results.

Writes the table between the markers of README.md, and results/speed.png.

Run: python benchmarks/collect.py
"""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
WORK = {
    "A": "A. logistic 784 x 10, 10 of 1000 clients, 6 steps of 10",
    "B": "B. CIFAR CNN (1.6M), 10 clients, 5 steps of 10",
    "cnn": "FedAvg CNN (1.7M), 28 x 28, 10 clients, 5 steps of 10",
    "resnet": "ResNet-18-GN (11M), 2 clients, 1 step of 20",
    "C": "C. gossip learning, 100 nodes, delays, losses",
    "F": "F. 64 runs of A: 8 learning rates x 8 seeds",
}
RIVALS = ("pytorch", "fedjax", "pfl", "gossipy", "naive_jax")


def load(name):
    path = HERE / "results" / f"versus_{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def duration(seconds):
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table(found):
    columns = ("One round of", "jaxfl", "cold", "memory", "time of rivals, in that of jaxfl")
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    rows = []
    for name, entry in found.items():
        programs = entry["results"]["programs"]
        ours = programs["jaxfl"]
        slower = ", ".join(
            f"{rival} **{programs[rival]['times slower than jaxfl']:.3g}**"
            for rival in RIVALS
            if rival in programs
        )
        rows.append(
            f"| {WORK[name]} | {duration(ours['seconds per round'])} "
            f"| {ours['cold seconds']:.1f} s | {ours['megabytes']:.0f} MB | {slower} |"
        )
    return head + "\n".join(rows)


def figure(found, path):
    """Times as long as jaxfl, one group of bars per work, on a logarithmic axis."""
    colours = dict(zip(RIVALS, ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")))
    figure, axes = plt.subplots(figsize=(6.5, 0.9 + 0.32 * sum(map(count, found.values()))))
    y, ticks = 0.0, {}
    for name, entry in found.items():
        programs, first = entry["results"]["programs"], y
        for rival in RIVALS:
            if rival not in programs:
                continue
            times = programs[rival]["times slower than jaxfl"]
            label = rival if rival not in axes.get_legend_handles_labels()[1] else None
            axes.barh(y, times - 1, left=1, color=colours[rival], label=label)
            axes.text(max(times, 1) * 1.05, y, f"{times:.3g}", va="center", fontsize=8)
            y += 1
        ticks[(first + y - 1) / 2] = WORK[name].split(",")[0]
        y += 0.6
    axes.set(xscale="log", xlabel="time per round, in that of jaxfl")
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(right=axes.get_xlim()[1] * 2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=5, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def count(entry):
    return len(entry["results"]["programs"]) - 1


def main():
    found = {name: entry for name in WORK if (entry := load(name))}
    readme = HERE.parent / "README.md"
    marked = r"(<!-- speed -->\n).*?(\n<!-- /speed -->)"
    text, changed = re.subn(
        marked, lambda m: m[1] + table(found) + m[2], readme.read_text(), flags=re.S
    )
    assert changed == 1, "README.md has no <!-- speed --> markers"
    readme.write_text(text)
    figure(found, HERE / "results" / "speed.png")
    print(table(found))


if __name__ == "__main__":
    main()
