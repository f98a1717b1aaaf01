"""Reading a folder of pairs: what it holds of a split, checked before any training.

Functions that take `problems` append what is wrong to it, so that one error can list several
(`complain`). `datasets.PairedFolder` says how such a folder is laid out.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
ROUNDING = 1e-3  # labels of few digits reach this far over the border; they are cut back to it
SHOWN = 5  # problems of a folder that its error spells out

Objects = tuple[list[int], list[list[float]]]  # labels from 1, relative boxes x1 y1 x2 y2


class Folder(NamedTuple):
    """The classes of a folder and its images, all lists in the order of `ids`."""

    classes: tuple[str, ...]
    ids: list[str]
    conditions: list[str]
    paths: list[tuple[Path, Path]]  # (visible, infrared)
    sizes: list[tuple[int, int]]  # (width, height) in pixels
    objects: list[Objects]


def read_folder(root: Path, split: str | None, labels: str | None) -> Folder:
    """Everything but the pixels.

    Raises FileNotFoundError for a missing folder or list, ValueError for what is in them.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"no folder {root}; pass 'scenes' or a folder with visible/, infrared/, labels/ "
            "and classes.txt"
        )
    label_folder = find_labels(root, labels)
    classes = tuple(read_lines(root / "classes.txt", "write one class name per line"))
    problems: list[str] = []
    visible = list_images(root / "visible", problems)
    infrared = list_images(root / "infrared", problems)
    ids = read_ids(root, split, visible, infrared, problems)
    conditions = read_conditions(root / "conditions.txt", ids, problems)
    paths = [(visible[i], infrared[i]) for i in ids if i in visible and i in infrared]
    sizes = [pair_size(*pair, problems) for pair in paths]
    objects = [read_labels(label_folder / f"{i}.txt", classes, problems) for i in ids]
    complain(root, problems)
    return Folder(classes, ids, conditions, paths, sizes, objects)


class Pixels:
    """Images (4, H, W) of several sizes as uint8 in one buffer, which processes can share."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes  # (width, height)
        self.ends = list(accumulate(4 * width * height for width, height in sizes))
        self.buffer = torch.empty(self.ends[-1] if sizes else 0, dtype=torch.uint8)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index`, a view."""
        width, height = self.sizes[index]
        end = self.ends[index]
        return self.buffer[end - 4 * width * height : end].view(4, height, width)


def decode_all(root: Path, paths: list[tuple[Path, Path]], sizes: list[tuple[int, int]]) -> Pixels:
    """Every pair; ValueError lists the images that cannot be decoded."""
    pixels, problems = Pixels(sizes), []
    for i, pair in enumerate(paths):
        try:
            pixels[i].copy_(decode(*pair))
        except ValueError as error:
            problems.append(str(error))
    complain(root, problems)
    return pixels


def decode(visible: Path, infrared: Path) -> Tensor:
    """A pair as uint8 (4, H, W)."""
    planes = []
    for path, mode in ((visible, "RGB"), (infrared, "L")):
        try:
            with Image.open(path) as image:
                planes.append(np.atleast_3d(np.asarray(image.convert(mode))))
        except (OSError, SyntaxError) as error:  # what PIL raises for broken JPEG and PNG data
            raise ValueError(
                f"{path}: cannot be decoded ({error}); replace it or leave out its id"
            ) from error
    return torch.from_numpy(np.concatenate(planes, axis=2)).permute(2, 0, 1).contiguous()


def complain(root: Path, problems: list[str]) -> None:
    """Raises ValueError for the first problems, if there are any."""
    if not problems:
        return
    more = len(problems) - SHOWN
    listed = problems[:SHOWN] + ([f"... and {more} more"] if more > 0 else [])
    raise ValueError(f"{root} cannot be used as it is:\n" + "\n".join(f"- {p}" for p in listed))


def find_labels(root: Path, name: str | None) -> Path:
    """The folder of that name; without one, the first of the usual names that is there."""
    wanted = [name] if name else ["labels", "labels_fusion"]
    for folder in wanted:
        if (root / folder).is_dir():
            return root / folder
    there = ", ".join(sorted(p.name for p in root.glob("*labels*") if p.is_dir()))
    cure = f"name one of: {there}" if there else "it holds ID.txt with lines 'class cx cy w h'"
    raise FileNotFoundError(f"no folder {' or '.join(wanted)} in {root}; {cure}")


def read_lines(path: Path, cure: str) -> list[str]:
    """The lines that are not blank, stripped; at least one."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {cure}")
    lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty; {cure}")
    return lines


def list_images(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The images of a folder by id."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; pairs are in visible/ and infrared/")
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
        if path.stem in found:
            problems.append(f"{path}: {found[path.stem].name} has the same id; keep one of them")
        found[path.stem] = path
    if not found:
        raise FileNotFoundError(f"no images in {folder}; they end in {', '.join(SUFFIXES)}")
    return found


def read_ids(
    root: Path,
    split: str | None,
    visible: dict[str, Path],
    infrared: dict[str, Path],
    problems: list[str],
) -> list[str]:
    """The ids of a split in its order, or all of them sorted."""
    ids = sorted({*visible, *infrared})
    origin = "the other image of the pair is there"
    if split is not None:
        path = root / f"{split}.txt"
        ids = read_lines(
            path,
            "write one id per line; evaluate --split all (in Python split=None) takes every image",
        )
        origin = f"{path.name} lists it"
        twice = [i for i, count in Counter(ids).items() if count > 1]
        problems += [f"{path}: id {i!r} is listed more than once; list it once" for i in twice]
    for i in ids:
        for modality, images in (("visible", visible), ("infrared", infrared)):
            if i not in images:
                problems.append(
                    f"{root / modality}: no image of id {i!r}, but {origin}; add the image or "
                    "leave out the id"
                )
    return ids


def read_conditions(path: Path, ids: list[str], problems: list[str]) -> list[str]:
    """A condition per id, from the file or from the ids' last letters."""
    if not path.is_file():
        if all(i[-1] in "DN" for i in ids):
            return [{"D": "day", "N": "night"}[i[-1]] for i in ids]
        return ["all"] * len(ids)
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if len(words := line.split()) == 2:
            found[words[0]] = words[1]
        elif words:
            problems.append(f"{path}:{number}: found {line!r}; write 'ID condition'")
    for i in ids:
        if i not in found:
            problems.append(f"{path}: no condition for id {i!r}; add a line '{i} condition'")
    return [found.get(i, "") for i in ids]


def pair_size(visible: Path, infrared: Path, problems: list[str]) -> tuple[int, int]:
    """(width, height) of both images, from their headers."""
    sizes = []
    for path in (visible, infrared):
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
                if image.mode.startswith(("I", "F")):
                    problems.append(
                        f"{path}: pixels of more than 8 bits ({image.mode}); convert them to 8 "
                        "bits with the range of your choice"
                    )
        except (UnidentifiedImageError, OSError):
            problems.append(f"{path}: not a readable image; replace it or leave out its id")
    if len({*sizes}) > 1:
        (w, h), (other_w, other_h) = sizes
        problems.append(
            f"{infrared}: {other_w}x{other_h} pixels where {visible} has {w}x{h}; align the two "
            "images to one size"
        )
    return sizes[0] if sizes else (0, 0)


def read_labels(path: Path, classes: tuple[str, ...], problems: list[str]) -> Objects:
    """The objects of an image, their boxes cut to it."""
    labels, boxes = [], []
    if not path.is_file():
        problems.append(f"{path}: no such file; an image without objects has an empty one")
        return [], []
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if not (words := line.split()):
            continue
        try:
            index, (cx, cy, w, h) = int(words[0]), map(float, words[1:])
        except ValueError:
            problems.append(f"{path}:{number}: found {line!r}; write 'class cx cy w h'")
            continue
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        if not 0 <= index < len(classes):
            problems.append(
                f"{path}:{number}: class {index}, but classes.txt has {len(classes)} "
                f"(0 to {len(classes) - 1}); correct the line or add the class"
            )
        elif not (w > 0 and h > 0 and all(-ROUNDING <= v <= 1 + ROUNDING for v in box)):
            problems.append(
                f"{path}:{number}: box {' '.join(words[1:])} is empty or leaves the image; write "
                "centre, width and height relative to it, in [0, 1]"
            )
        else:
            labels.append(index + 1)
            boxes.append([min(max(v, 0.0), 1.0) for v in box])
    return labels, boxes
