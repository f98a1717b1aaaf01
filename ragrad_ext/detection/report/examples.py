"""The validation images that a report shows, and what each model finds in them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..data.datasets import PairedImages
from ..evaluation.evaluate import detect
from ..evaluation.saliency import gradient_saliency, layer_cam
from ..training.checkpoint import load_checkpoint
from ..training.model import trained_model

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """A validation pair: image (4, H, W) in [0, 1], its target, and what each method finds in it.

    `detections`: method -> dict of boxes, labels and scores. `saliency`: method -> maps (H, W) in
    [0, 1]: gradient saliency of rgb and of ir, LayerCAM of the fused features.
    """

    title: str
    image: Any
    target: Mapping[str, Any]
    detections: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    saliency: dict[str, tuple[Any, Any, Any]] = field(default_factory=dict)

    def views(self) -> tuple[Pixels, Pixels]:
        """The visible and the infrared image, both (H, W, 3)."""
        image = np.asarray(self.image, dtype=np.float32)
        return image[:3].transpose(1, 2, 0), np.repeat(image[3:].transpose(1, 2, 0), 3, axis=2)


def choose_examples(data: PairedImages, count: int) -> list[int]:
    """Indices of images with objects, the conditions in turn. No result decides about it."""
    by_condition: dict[str, list[int]] = {}
    for i, condition in enumerate(data.conditions):
        by_condition.setdefault(condition, []).append(i)
    turns = itertools.zip_longest(*(by_condition[c] for c in sorted(by_condition)))
    shown = (i for turn in turns for i in turn if i is not None and len(data.target(i)["boxes"]))
    return list(itertools.islice(shown, count))


def make_examples(
    val: PairedImages, checkpoints: Mapping[str, Path], count: int, device: torch.device
) -> list[Example]:
    """A few images of `val` with what each method's model finds, and where it looks.

    `checkpoints` gives the file of each method. Raises what `load_checkpoint` and `trained_model`
    raise.
    """
    chosen = choose_examples(val, count)
    samples = [val[i] for i in chosen]
    detections: list[dict[str, Any]] = [{} for _ in chosen]
    saliency: list[dict[str, Any]] = [{} for _ in chosen]
    for method, path in checkpoints.items():
        model = trained_model(load_checkpoint(path), val.classes, path).to(device)
        for k, found in enumerate(detect(model, samples, device)):
            image = samples[k][0].to(device)
            detections[k][method] = found
            saliency[k][method] = (*gradient_saliency(model, image), layer_cam(model, image))
    titles = [f"{val.ids[i]} ({val.conditions[i]})" for i in chosen]
    return [
        Example(title, image, target, detections[k], saliency[k])
        for k, (title, (image, target)) in enumerate(zip(titles, samples, strict=True))
    ]
