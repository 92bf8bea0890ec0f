"""One model per node of a graph, in rounds."""
