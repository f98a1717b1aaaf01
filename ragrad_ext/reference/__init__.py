"""The literal reference, in plain PyTorch and float64: observe, rate and apply.

The fourth verb, decide, has its reference in `ragrad_ext.rules`.
"""

from .apply import apply_
from .observe import observe_
from .rate import Moments, moments, normalise, rate_

__all__ = ["Moments", "apply_", "moments", "normalise", "observe_", "rate_"]
