"""One cache of plans, for calls whose caller keeps nothing from step to step."""

from __future__ import annotations

import threading
from functools import lru_cache

import torch

from .bucket import Buckets
from .layout import Layout


def buckets_of(layout: Layout, channel_axes: tuple[int, ...] | None = None) -> Buckets:
    """What makes buckets of gradients of this layout, kept from call to call.

    Args:
        channel_axes: the output channel axis of each pair; None: the first of all.

    Every thread has its own, so that none meets the table of another's gradients. The latest 32
    are kept, without gradients.
    """
    if torch.compiler.is_compiling():  # what is being compiled keeps nothing
        return _made(layout, channel_axes)
    return _kept(layout, channel_axes, threading.get_ident())


@lru_cache(maxsize=32)
def _kept(layout: Layout, channel_axes: tuple[int, ...] | None, thread: int) -> Buckets:
    return _made(layout, channel_axes)


def _made(layout: Layout, channel_axes: tuple[int, ...] | None) -> Buckets:
    return Buckets(layout, channel_axes or (0,) * len(layout.channels))
