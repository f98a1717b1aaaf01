"""Running a detector over a dataset, and COCO's average precision of what it found."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from tqdm import tqdm


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; on the way out every module is in the mode that it was in, one by one."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()  # inference_mode would leak inference tensors through the cached anchors
def detect(
    model: nn.Module,
    dataset: Any,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    progress: bool = False,
) -> list[dict[str, Tensor]]:
    """What `model` (already on `device`) finds in each image of `dataset`, in its order.

    One dict per image, on the CPU: boxes (n, 4) xyxy pixels, labels (n,), scores (n,), best first.
    Label 0, background, is left out: FCOS and RetinaNet have a logit for it and may report it.
    """
    found: list[dict[str, Tensor]] = []
    starts = range(0, len(dataset), batch_size)
    with evaluating(model):
        for start in tqdm(starts, desc="detect", unit="batch", leave=False, disable=not progress):
            indices = range(start, min(start + batch_size, len(dataset)))
            for detections in model([dataset[i][0].to(device) for i in indices]):
                objects = detections["labels"] > 0
                found.append({name: values[objects].cpu() for name, values in detections.items()})
    return found


def average_precision(
    dataset: Any, detections: Sequence[dict[str, Tensor]]
) -> dict[str, dict[str, float]]:
    """COCO's AP (IoU 0.50 to 0.95), AP50 and AP75 by pycocotools, each in [0, 1].

    `detections` has one dict per image of `dataset`, in its order, as `detect` returns. The result
    holds "overall" and, where `dataset.conditions` names at least two, one entry per condition. A
    class without an object in a split is left out of its mean; a split without any has nan.
    Ground truth comes from `dataset.target(i)` where there is one, else from `dataset[i]`.

    Raises ValueError when the number of detections is not that of the images.
    """
    if len(detections) != len(dataset):
        raise ValueError(
            f"detections of {len(detections)} images for a dataset of {len(dataset)}; pass one "
            "dict per image, in the dataset's order"
        )
    target = getattr(dataset, "target", lambda i: dataset[i][1])
    splits = {"overall": list(range(len(dataset)))}
    conditions = list(dataset.conditions)
    if len(set(conditions)) > 1:
        for i, condition in enumerate(conditions):
            splits.setdefault(condition, []).append(i)
    classes = len(dataset.classes)
    with redirect_stdout(io.StringIO()):  # pycocotools prints its timings
        evaluation = COCOeval(
            _coco([target(i) for i in range(len(dataset))], classes),
            _coco(detections, classes),
            "bbox",
        )
        return {name: _precision(evaluation, images) for name, images in splits.items()}


def _coco(images: Sequence[dict[str, Any]], classes: int) -> COCO:
    """The boxes of all images as pycocotools wants them; an image's id is its index."""
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(images):
        labels = image["labels"]
        scores = image.get("scores", labels)  # an object has no score; pycocotools reads none
        rows = zip(image["boxes"].tolist(), labels.tolist(), scores.tolist(), strict=True)
        for (x0, y0, x1, y1), label, score in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would mean "unmatched"
                    "image_id": i,
                    "category_id": label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "categories": [{"id": label} for label in range(1, classes + 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _precision(evaluation: COCOeval, images: list[int]) -> dict[str, float]:
    evaluation.params.imgIds = images
    evaluation.params.areaRng = evaluation.params.areaRng[:1]  # all sizes together
    evaluation.params.maxDets = evaluation.params.maxDets[-1:]  # the 100 best of an image
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # (10 IoUs, 101 recalls, classes)
    precision = precision[:, :, precision[0, 0] >= 0]  # -1: no object of this class
    return {"AP": _mean(precision), "AP50": _mean(precision[0]), "AP75": _mean(precision[5])}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
