"""No common rounds: buffers, clocks, messages under way."""
