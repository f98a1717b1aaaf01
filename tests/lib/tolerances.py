"""The one table of tolerances, with a reason beside each number."""

from __future__ import annotations

import torch

# Largest error of a corrected row relative to its norm.
RESULT = {
    torch.float32: 1e-6,  # SPEC: float32 results agree to 1e-6 of the row norm
    torch.bfloat16: 2**-8,  # one rounding of the output: half an ulp, 8 bits of significand
    torch.float16: 2**-11,  # likewise, 11 bits
}

# bfloat16 that Triton's interpreter stores: cut off instead of rounded, up to a whole ulp.
TRUNCATED = 2**-7

# Cosines and strengths are float32 values of float64 sums: half an ulp, and one to spare.
STAGE = 2**-23

# Around a threshold of Eq. 6 two correct backends may differ: a few ulps of float32.
MARGIN = 4 * 2**-23

# A central difference over float32 gradients at steps of 1e-2 to 1e-1 of the weights: rounding
# 2^-24 / s, and truncation s^2 of a fourth derivative (none for a quadratic loss).
FINITE_DIFFERENCE = 2e-3
