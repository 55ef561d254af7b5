"""Training an adapter: loop, optimizer, checkpoints, feature cache."""
