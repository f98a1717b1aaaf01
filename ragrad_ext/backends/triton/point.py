"""Triton: the pointer table of a launch."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["first", "addresses"])
def point(table, first: tl.int64, addresses, N: tl.constexpr):
    """Write N addresses, given by value, into a pointer table."""
    for i in tl.static_range(N):
        tl.store(table + first + i, addresses[i])
