"""Evaluation: average precision, matching, saliency."""
