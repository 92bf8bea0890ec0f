"""Studies of many runs: configurations, sweeps, comparisons, results, reports."""
