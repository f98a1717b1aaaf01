"""Aligned visible/infrared crops of single objects, 32 x 32, for a quick classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ragrad_ext.detection.data.scenes import CONDITIONS, scene

SIDE = 32


def flir(path: Path, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n random crops of `flir_crops.npz`: images (n, 4, 32, 32) in [0, 1], labels (n,) 0, 1, 2."""
    with np.load(path, allow_pickle=False) as data:
        found = _taken(data, np.random.default_rng(seed).choice(len(data["label"]), n, False))
    return found.images, found.labels


class Crops(NamedTuple):
    """Images (n, 4, 32, 32) in [0, 1], labels (n,) 0, 1, 2 and whether each is of a night."""

    images: Tensor
    labels: Tensor
    night: Tensor


def split(path: Path, seed: int = 0) -> tuple[Crops, Crops]:
    """All crops of `flir_crops.npz`, those to learn (in random order) and the held-out ones."""
    with np.load(path, allow_pickle=False) as data:
        held_out = data["val"].astype(bool)
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(~held_out))
        return _taken(data, rows), _taken(data, np.flatnonzero(held_out))


def _taken(data: Any, rows: Any) -> Crops:
    rgb, ir, label, night = (data[name][rows] for name in ("rgb", "ir", "label", "night"))
    image = np.concatenate([rgb.transpose(0, 3, 1, 2), ir[:, None]], 1)
    return Crops(
        torch.from_numpy(image).float() / 255,
        torch.from_numpy(label).long(),
        torch.from_numpy(night).bool(),
    )


def generated(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n crops around the objects of generated scenes, all conditions in turn; labels 0, 1, 2."""
    images, labels = [], []
    conditions = list(CONDITIONS)
    for i in range(n):
        condition = conditions[i % len(conditions)]
        image, boxes, kinds, _ = scene(np.random.default_rng((seed, i)), (160, 128), condition)
        pick = i % len(boxes)
        left, top, right, bottom = (round(v) for v in boxes[pick].tolist())
        crop = torch.from_numpy(image)[None, :, top:bottom, left:right]
        images.append(torch.nn.functional.interpolate(crop, (SIDE, SIDE), mode="bilinear")[0])
        labels.append(int(kinds[pick]) - 1)
    return torch.stack(images), torch.tensor(labels)
