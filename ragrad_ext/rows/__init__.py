"""Paired tensors as rows: one row per output channel, layer by layer."""
