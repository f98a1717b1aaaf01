"""Visible/infrared pairs with boxes: generated scenes, or a folder of images in two modalities.

Every dataset gives samples (image, target): `image` a float32 tensor (4, H, W) in [0, 1] (RGB,
then infrared) and `target` a dict with

- `boxes` (n, 4) float32, x1 y1 x2 y2 in pixels, and `labels` (n,) int64 from 1 (0 is the
  background, label k is `classes[k - 1]`);
- `image_id`, the index; `condition`, such as "day" or "night"; `degradation` (2,) float32,
  how much of (RGB, infrared) was taken away, from 0 to 1, or nan where it is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import scenes
from .folder import Pixels, decode, decode_all, read_folder

Target = dict[str, Any]
Sample = tuple[Tensor, Target]

CACHE_BYTES = 2 * 2**30  # a split whose decoded images exceed this is read again every time
SPLITS = ("train", "val")


def open_data(
    spec: str | Path | None,
    split: str | None,
    *,
    labels: str | None = None,
    n: int = 256,
    size: tuple[int, int] = (160, 128),
    seed: int = 0,
    cache: bool = True,
) -> PairedImages:
    """The `split` of a folder (see `PairedFolder`), or of generated scenes (see `Scenes`).

    Scenes are meant by None or "scenes"; `n`, `size` and `seed` are theirs, `labels` is
    the folder's. The scenes of "train" and "val" never coincide, whatever their seeds.
    """
    if spec is not None and spec != "scenes":
        return PairedFolder(spec, split, labels, cache=cache)
    if split not in SPLITS:
        raise ValueError(f"scenes have the splits {' and '.join(SPLITS)}, found {split!r}")
    return Scenes(n, len(SPLITS) * seed + SPLITS.index(split), size, cache=cache)


def collate(batch: Sequence[Sample]) -> tuple[list[Tensor], list[Target]]:
    """Samples as torchvision's detectors take them: a list of images and a list of targets."""
    return [image for image, _ in batch], [target for _, target in batch]


class PairedImages(Dataset[Sample]):
    """What all datasets share: names of labels 1, 2, ..., and an id and a condition per image."""

    classes: tuple[str, ...]
    ids: list[str]
    conditions: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.image(index).float() / 255, self.target(index)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def image(self, index: int) -> Tensor:
        """The pair as uint8 (4, H, W)."""
        raise NotImplementedError

    def target(self, index: int) -> Target:
        """The target alone; of a folder, without decoding the images."""
        boxes, labels, degradation = self.truth(index)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "image_id": index,
            "condition": self.conditions[index],
            "degradation": torch.tensor(degradation, dtype=torch.float32),
        }

    def share_memory_(self) -> None:
        """Moves decoded images to shared memory: processes that get this data set need no copy.

        Raises ValueError if they do not fit.
        """

    def truth(self, index: int) -> tuple[Any, Any, Any]:
        """Boxes (n, 4) in pixels, labels (n,) and degradation (2,) as arrays or lists."""
        raise NotImplementedError


class Scenes(PairedImages):
    """`n` generated scenes (see `scenes.py`); image i depends on (seed, i) alone.

    Conditions take turns, so each has its share of the images. `size` is (width, height).
    `degradation` forces the amounts of (RGB, infrared); `None` in it leaves one to the
    condition. `cache` keeps images as uint8; without it they are painted again each time,
    the same. A copy in another process paints its own: that takes milliseconds an image.

    Raises ValueError for `n` below 1 and for what `scenes.scene` refuses.
    """

    def __init__(
        self,
        n: int,
        seed: int = 0,
        size: tuple[int, int] = (160, 128),
        *,
        conditions: Sequence[str] = tuple(scenes.CONDITIONS),
        degradation: tuple[float | None, float | None] | None = None,
        cache: bool = True,
    ) -> None:
        if n < 1:
            raise ValueError(f"n is the number of scenes, at least 1, found {n}")
        for condition in conditions:  # a bad option shows here, not in the middle of a run
            scenes.scene(np.random.default_rng(seed), size, condition, degradation)
        self.classes = scenes.CLASSES
        self.ids = [f"{i:05d}" for i in range(n)]
        self.conditions = [conditions[i % len(conditions)] for i in range(n)]
        self.seed, self.size, self.degradation, self.cache = seed, size, degradation, cache
        self.kept: dict[int, tuple[Tensor, tuple[Any, Any, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}}

    def image(self, index: int) -> Tensor:
        return self.painted(index)[0]

    def truth(self, index: int) -> tuple[Any, Any, Any]:
        return self.painted(index)[1]

    def painted(self, index: int) -> tuple[Tensor, tuple[Any, Any, Any]]:
        """Image and truth of a scene, from the cache where they are in it."""
        if index in self.kept:
            return self.kept[index]
        rng = np.random.default_rng((self.seed, index))
        pair, boxes, labels, degradation = scenes.scene(
            rng, self.size, self.conditions[index], self.degradation
        )
        image = torch.from_numpy(pair).mul_(255).round_().byte()
        painted = image, (boxes, labels, degradation)
        if self.cache:
            self.kept[index] = painted
        return painted


class PairedFolder(PairedImages):
    """Pairs in a folder: `visible/ID.jpg`, `infrared/ID.jpg`, `labels/ID.txt`.

    - Labels: a line `class cx cy w h` per object, relative to the image, classes counted from 0
      in the order of `classes.txt` (a name per line). An image without objects has an empty
      file. `labels` names their folder; by default it is "labels", else "labels_fusion".
    - Split: "train" is the list of ids `train.txt` (one per line); None takes every image.
    - Conditions: lines `ID condition` in `conditions.txt`. Without that file, ids that all
      end in D or N are day and night; any others are "all".
    - Images: jpg, png, bmp or tif of 8 bits, both of a pair of one size. Infrared that is stored
      as three channels is turned to grey.

    All of it is checked here, before any training: labels, pairs and headers always, pixels if
    `cache` is on and the decoded images, kept as uint8, fit into `CACHE_BYTES`.

    Raises FileNotFoundError for a missing folder or list, ValueError for what is in them; the
    latter lists the first few problems with file, line and cure.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = "train",
        labels: str | None = None,
        *,
        cache: bool = True,
    ) -> None:
        self.folder = read_folder(Path(root), split, labels)
        self.classes = self.folder.classes
        self.ids = self.folder.ids
        self.conditions = self.folder.conditions
        self.kept: Pixels | None = None
        sizes = self.folder.sizes
        if cache and 4 * sum(width * height for width, height in sizes) <= CACHE_BYTES:
            self.kept = decode_all(Path(root), self.folder.paths, sizes)

    def image(self, index: int) -> Tensor:
        return decode(*self.folder.paths[index]) if self.kept is None else self.kept[index]

    def share_memory_(self) -> None:
        if self.kept is None:
            return
        try:
            self.kept.buffer.share_memory_()
        except RuntimeError as error:
            size = self.kept.buffer.numel() / 2**20
            raise ValueError(
                f"{size:.0f} MiB of decoded images do not fit into shared memory ({error}); use "
                "--jobs 1, or give the machine more of it (docker run --shm-size)"
            ) from error

    def truth(self, index: int) -> tuple[Any, Any, Any]:
        labels, boxes = self.folder.objects[index]
        width, height = self.folder.sizes[index]
        scaled = np.array(boxes).reshape(-1, 4) * (width, height, width, height)
        return scaled, labels, (math.nan, math.nan)
