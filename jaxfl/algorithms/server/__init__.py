"""One model, on a server."""
