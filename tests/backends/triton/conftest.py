"""What every test needs whose kernels are interpreted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _interpreter(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("interpreted") is None:
        yield
        return
    from ...lib.interpreter import require_loops

    with np.errstate(all="ignore"):  # 0/0 is nan in a kernel; numpy, which interprets it, warns
        require_loops()  # all kernels have them
        yield
