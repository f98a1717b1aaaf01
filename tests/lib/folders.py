"""A folder of visible/infrared pairs, written from generated scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ragrad_ext.detection.data.datasets import Scenes


def write_folder(root: Path, train: int, val: int, size: tuple[int, int] = (96, 96)) -> None:
    """`train` + `val` pairs of `size` (width, height) with labels, classes and both lists."""
    scenes = Scenes(train + val, size=size)
    for name in ("visible", "infrared", "labels"):
        (root / name).mkdir(parents=True)
    for i, name in enumerate(scenes.ids):
        image = scenes.image(i).permute(1, 2, 0).numpy()
        Image.fromarray(np.ascontiguousarray(image[..., :3])).save(root / f"visible/{name}.png")
        Image.fromarray(np.ascontiguousarray(image[..., 3])).save(root / f"infrared/{name}.png")
        target = scenes.target(i)
        lines = []
        for (x1, y1, x2, y2), label in zip(
            target["boxes"].tolist(), target["labels"].tolist(), strict=True
        ):
            box = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
            relative = [v / side for v, side in zip(box, size * 2, strict=True)]
            lines.append(" ".join(map(str, [label - 1, *relative])) + "\n")
        (root / f"labels/{name}.txt").write_text("".join(lines))
    (root / "classes.txt").write_text("\n".join(scenes.classes))
    (root / "train.txt").write_text("\n".join(scenes.ids[:train]))
    (root / "val.txt").write_text("\n".join(scenes.ids[train:]))
