"""Eq. 1 estimated: what the loss would lose without a channel."""
