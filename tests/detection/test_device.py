"""Names of devices."""

from __future__ import annotations

import pytest

from ragrad_ext.detection.device import pick_device


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device 'xyz' cannot be used: .*; try --device cpu"):
        pick_device("xyz")
