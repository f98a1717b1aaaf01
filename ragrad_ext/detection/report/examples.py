"""The validation images that a report shows, and what each model makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.datasets import PairedImages
from ..evaluation.evaluate import detect
from ..evaluation.saliency import gradient_saliency, layer_cam
from ..settings import Settings
from ..training.model import load_trained, pick_device
from .report import Picture


def choose_pictures(data: PairedImages, count: int) -> list[int]:
    """Indices of images with objects, the conditions in turn; no result has a say in it."""
    by_condition: dict[str, list[int]] = {}
    for i, condition in enumerate(data.conditions):
        by_condition.setdefault(condition, []).append(i)
    turns = itertools.zip_longest(*(by_condition[c] for c in sorted(by_condition)))
    shown = (i for turn in turns for i in turn if i is not None and len(data.target(i)["boxes"]))
    return list(itertools.islice(shown, count))


def make_pictures(
    settings: Settings, val: PairedImages, models: Mapping[str, Path], count: int
) -> list[Picture]:
    """A few images of `val` with what each method's model finds, and where it looks."""
    chosen = choose_pictures(val, count)
    samples = [val[i] for i in chosen]
    device = pick_device(settings.device)
    detections: list[dict[str, Any]] = [{} for _ in chosen]
    saliency: list[dict[str, Any]] = [{} for _ in chosen]
    for method, checkpoint in models.items():
        model, _ = load_trained(checkpoint, val, settings.device)
        for k, found in enumerate(detect(model, samples, device)):
            image = samples[k][0].to(device)
            detections[k][method] = found
            saliency[k][method] = (*gradient_saliency(model, image), layer_cam(model, image))
    titles = [f"{val.ids[i]} ({val.conditions[i]})" for i in chosen]
    return [
        Picture(title, image, target, detections[k], saliency[k])
        for k, (title, (image, target)) in enumerate(zip(titles, samples, strict=True))
    ]
