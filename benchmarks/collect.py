"""The table and figure of speed, from the committed results.

Writes the table between the markers of docs/speed.md, and results/speed.png. Where there are
results of a GPU, a second table follows.

Run: python benchmarks/collect.py
"""

import itertools
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
    "D": "D. mixing, 1024 nodes x 100k parameters, degree 4",
    "E": "E. D-SGD, 64 nodes on a ring, MLP 64-64-10",
    "F": "F. 64 runs of A: 8 learning rates x 8 seeds",
}
GPU = {
    "A": WORK["A"],
    "B_full": "B. CIFAR CNN (1.6M), 50 of 1000 clients, 5 steps of 10",
    "resnet_full": "ResNet-18-GN (11M), 10 of 100 clients, 50 steps of 50",
    **{name: WORK[name] for name in "CDE"},
    "F_full": "F. 1024 runs of A: 32 learning rates x 32 seeds",
}
PRECISIONS = ("float32", "tf32", "bfloat16")
RIVALS = ("pytorch", "fedjax", "pfl", "gossipy", "naive_jax")


def load(name):
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def load_gpu():
    """Results by what the row says."""
    found = {}
    for (name, label), precision in itertools.product(GPU.items(), PRECISIONS):
        plain = precision == "float32"
        entry = load(f"gpu_versus_{name}" if plain else f"gpu_versus_{name}_{precision}")
        if entry:
            found[label if plain else f"{label}, {precision}"] = entry
    return found


def duration(seconds):
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table(found, limit=False):
    columns = ["One round of", "jaxfl", "cold", "memory", "time of rivals, in that of jaxfl"]
    columns += ["fraction of the limit"] * limit
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    rows = []
    for label, entry in found.items():
        programs = entry["results"]["programs"]
        ours = programs["jaxfl"]
        slower = ", ".join(
            f"{rival} **{programs[rival]['times slower than jaxfl']:.3g}**"
            for rival in RIVALS
            if rival in programs
        )
        memory = ours.get("device megabytes", ours["megabytes"])
        cells = [label, duration(ours["seconds per round"]), f"{ours['cold seconds']:.1f} s"]
        cells += [f"{memory:.0f} MB", slower]
        if limit:
            cells.append(f"{entry['results']['fraction of the limit']:.2g}")
        rows.append(f"| {' | '.join(cells)} |")
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
        ticks[(first + y - 1) / 2] = name.split(",")[0]
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
    found = {label: entry for name, label in WORK.items() if (entry := load(f"versus_{name}"))}
    text = table(found)
    if gpu := load_gpu():
        kinds = sorted({entry["device"]["kind"] for entry in gpu.values()})
        text += f"\n\nOn a GPU ({', '.join(kinds)}; memory of the GPU):\n\n{table(gpu, limit=True)}"
    path = HERE.parent / "docs" / "speed.md"
    marked = r"(<!-- speed -->\n).*?(\n<!-- /speed -->)"
    page, changed = re.subn(marked, lambda m: m[1] + text + m[2], path.read_text(), flags=re.S)
    assert changed == 1, "docs/speed.md has no <!-- speed --> markers"
    path.write_text(page)
    figure(found, HERE / "results" / "speed.png")
    print(text)


if __name__ == "__main__":
    main()
