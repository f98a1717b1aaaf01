"""Training: settings, the loop, checkpoints, logs."""
