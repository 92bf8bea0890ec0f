"""Pictures for papers, legible at one column's width (3.3 inches); each function returns its axes.

| of | functions |
|---|---|
| `jaxfl.sweep` | `heatmap`, `robustness` |
| `jaxfl.sweep`, `jaxfl.compare` | `learning_curves`, `pareto`, `ecdf`, `consensus` |
| graphs and mixing weights | `graph`, `spectrum`, `graph_and_spectrum` |
| data on clients | `partition` |

A sweep has as many dimensions as were varied, a picture two or three: select the rest, as in
`heatmap(ds.sel(algorithm="FedAvg"), "lr", "alpha")`, or choose it on validation data first.
"""

from jaxfl.plots.clients import ecdf, partition
from jaxfl.plots.graphs import consensus, graph, graph_and_spectrum, spectrum
from jaxfl.plots.runs import heatmap, learning_curves, pareto, robustness
from jaxfl.plots.style import COLOURS

__all__ = [
    "COLOURS",
    "consensus",
    "ecdf",
    "graph",
    "graph_and_spectrum",
    "heatmap",
    "learning_curves",
    "pareto",
    "partition",
    "robustness",
    "spectrum",
]
