"""The engine: clients, mixing, the contract, one scan over rounds."""
