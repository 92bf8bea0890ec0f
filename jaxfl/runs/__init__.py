"""Long runs: chunks of rounds, streams, checkpoints, writers, memory in advance."""
