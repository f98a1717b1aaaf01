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

# Numbers that a test works out by hand with six decimals, and quantiles printed with four.
BY_HAND = 1e-6
QUANTILE = 5e-5

# Noise of generated scenes: the mean of 38,000 pixels, whose standard deviation is 0.06 or less, is
# off by less than 3e-4, and their standard deviation by less than 0.4 %.
NOISE_MEAN = 1e-3
NOISE_STD = 0.02

# The mean of an even image after it was resized over a border that is filled with its mean.
RESIZED_MEAN = 0.01

# Cosines and strengths are float32 values of float64 sums: half an ulp, and one to spare.
STAGE = 2**-23

# Two float64 sums of the same terms in another order, relative to the sum of their magnitudes.
SUM = 1e-14

# A mean of squares: such a sum, of terms that are rounded themselves; none of them is negative.
DEVIATION = 1e-12

# Products of float64, and a sum of two of them, relative to their magnitudes: a few last bits.
PRODUCT = 2**-50

# Around a threshold of Eq. 6 two correct backends may differ: a few ulps of float32.
MARGIN = 4 * 2**-23

# A central difference over float32 gradients at steps of 1e-2 to 1e-1 of the weights: rounding
# 2^-24 / s, and truncation s^2 of a fourth derivative (none for a quadratic loss).
FINITE_DIFFERENCE = 2e-3

# E of Eq. 1, as a share of the largest E. Float32 sums over activations, taken in another order,
# differ by 1e-6; next to a norm with a large mean or spread, where they cancel, by up to 2e-5.
EFFECT = 1e-4
EFFECT_PLAIN = 1e-5  # where nothing cancels

# E as a difference of two float32 losses of about 1, summed in another order: a few ulps of the
# loss, 2^-23, in units of the loss.
LOSS_DIFFERENCE = 1e-6

# E of two replicas against one process, as a share of the largest E: each half of the batch has a
# mean and a loss of its own, rounded to float32.
REPLICAS = 1e-4

# Sums of the same float64 values in another order.
FLOAT64_SUM = 1e-9

# q of one-sided differences, as a share of the largest q: float32 gradients differ by 2^-24, over a
# step of a tenth of the weights.
ONE_SIDED = 1e-5

# One difference in bfloat16: the moved weights round to 2^-9 of themselves, at a step of a tenth.
ONE_STEP_BFLOAT16 = 0.03

# How far float32 weights really moved, read back as a difference of two of them: 2^-24 over a step
# of a hundredth.
MOVED = 1e-4

# Rank-free agreement (Pearson) of E under bfloat16 autocast with E in float32: 8 bits of
# significand in every activation.
AUTOCAST_CORRELATION = 0.99

# Random probes. 20 means of 256 draws exceed 4.5 standard errors with p < 2e-4 (two-sided); the
# standard error of 4 means falls by 4 from 4 draws to 64, itself known to 10 % or more.
PROBE_STANDARD_ERRORS = 4.5
PROBE_CONVERGENCE = 0.35
LABEL_STANDARD_ERRORS = 5  # of 3 shares of 20,000 drawn labels

# Sums of float64 products in two orders, relative to the product of both norms.
GRAM = 1e-12
