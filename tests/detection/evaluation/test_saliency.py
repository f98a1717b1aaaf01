"""Maps whose answer is known, and that looking changes nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ragrad_ext.detection.evaluation.saliency import gradient_saliency, layer_cam
from ragrad_ext.detection.models.detectors import DETECTORS
from ragrad_ext.detection.models.fusion import Fuse
from ragrad_ext.detection.models.two_stream import PairTransform, build

LEFT = [0.0, 0.0, 16.0, 16.0]
RIGHT = [32.0, 8.0, 48.0, 24.0]


class Known(nn.Module):
    """Two detections whose scores read the fused features: LEFT, label 1, and RIGHT, label 2.

    The one level is the mean of cells of 8 x 8 pixels, twice red plus infrared (in normalised
    units). LEFT reads its first cell with weight 3, RIGHT cell (1, 4) with weight 1; cell (3, 0)
    counts against both.
    """

    def __init__(self, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.transform = PairTransform(image_size)
        self.backbone = nn.Module()
        self.backbone.rgb, self.backbone.ir = nn.Identity(), nn.Identity()
        self.backbone.fuse = Fuse()
        self.weight = nn.Parameter(torch.tensor([3.0, 1.0]))

    def read(self, rgb: Tensor, ir: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        cells = functional.avg_pool2d(torch.cat([2 * rgb[:, :1], ir[:, :1]], 1), 8)
        return {"0": (cells[:, :1], cells[:, 1:])}

    def levels(self, image: Tensor) -> dict[str, Tensor]:
        backbone: Any = self.backbone
        batch = self.transform([image])[0].tensors
        read = self.read(
            backbone.rgb(batch[:, :3]), backbone.ir(batch[:, 3:].expand(-1, 3, -1, -1))
        )
        return backbone.fuse(*(OrderedDict((k, v[m]) for k, v in read.items()) for m in (0, 1)))

    def score(self, levels: dict[str, Tensor]) -> Tensor:
        level = levels["0"][0, 0]
        return 5 + self.weight * torch.stack([level[0, 0], level[1, 4]]) - level[3, 0]

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        scores, labels = self.score(self.levels(images[0])), torch.tensor([1, 2])
        return [{"boxes": torch.tensor([LEFT, RIGHT]), "labels": labels, "scores": scores}]


class Impartial(Known):
    """Reads all six channels alike."""

    def read(self, rgb: Tensor, ir: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        rgb, ir = (functional.avg_pool2d(x.mean(1, keepdim=True), 8) for x in (rgb, ir))
        return {"0": (rgb, ir)}


class TwoLevels(Known):
    """The same, and RIGHT also reads a coarser level (cells of 16 x 16 pixels), at (1, 3)."""

    def read(self, rgb: Tensor, ir: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        coarse = functional.avg_pool2d(ir[:, :1], 16)
        return {**super().read(rgb, ir), "1": (coarse, 0 * coarse)}

    def score(self, levels: dict[str, Tensor]) -> Tensor:
        return super().score(levels) + torch.stack([torch.zeros(()), levels["1"][0, 0, 1, 3]])


def image(height: int = 32, width: int = 64) -> Tensor:
    """Brighter than the mean everywhere, so that features of `Known` are positive."""
    return torch.rand(4, height, width, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.5


def target(boxes: list[list[float]], labels: list[int]) -> dict[str, Any]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels).long(),
        "condition": "fog",
    }


def fresh(detector: str = "fcos") -> Any:
    """A detector without training; explained with confidence 0, it has something to explain."""
    model: Any = build(detector)
    (model.roi_heads if detector == "fasterrcnn" else model).score_thresh = 0.0
    return model


def test_gradient_saliency_of_a_known_model() -> None:
    rgb, ir = gradient_saliency(Known(), image())
    assert rgb.shape == ir.shape == (32, 64)
    assert rgb.max() == 1
    torch.testing.assert_close(ir, rgb / 2)  # red counts twice
    # Away from the borders of the cells, which the smoothing blurs: 3 to 1 to 2 (-1 of both).
    torch.testing.assert_close(rgb[:5, :5], torch.ones(5, 5))
    torch.testing.assert_close(rgb[11:13, 35:37], torch.full((2, 2), 1 / 3))
    torch.testing.assert_close(rgb[27:, :5], torch.full((5, 5), 2 / 3))
    assert not rgb[:, 12:29].any()


def test_what_is_read_alike_is_equally_salient() -> None:
    rgb, ir = gradient_saliency(Impartial(), image())
    assert rgb.max() == 1
    torch.testing.assert_close(rgb, ir)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_stream_without_weights_has_no_saliency(dead: int) -> None:
    model = fresh()
    for parameter in (model.backbone.rgb, model.backbone.ir)[dead].parameters():
        nn.init.zeros_(parameter)
    maps = gradient_saliency(model, image(64, 96), confidence=0)
    assert not maps[dead].any()
    assert maps[1 - dead].max() == 1


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((32, 64), None, (32, 64)),
        ((28, 60), None, (32, 64)),  # the padding is cut off, the map not squeezed
        ((32, 64), (128, 64), (64, 128)),
    ],
)
def test_layer_cam_of_a_known_model(
    size: tuple[int, int], resized: tuple[int, int] | None, padded: tuple[int, int]
) -> None:
    model, picture = Known(resized), image(*size)
    with torch.no_grad():
        level = model.levels(picture)["0"][0, 0]
    assert level[0, 0] > 0
    assert level[1, 4] > 0
    cells = torch.zeros(1, 1, *level.shape)
    # Gradients 3 and 1; that of cell (3, 0) is negative and drops out.
    cells[0, 0, 0, 0], cells[0, 0, 1, 4] = 3 * level[0, 0], level[1, 4]
    expected = functional.interpolate(cells, padded, mode="bilinear")
    if resized is None:
        expected = expected[..., : size[0], : size[1]]
    else:
        expected = functional.interpolate(expected, size, mode="bilinear")
    cam = layer_cam(model, picture)
    assert cam.max() == 1
    torch.testing.assert_close(cam, expected[0, 0] / expected.max())


def test_layer_cam_takes_the_largest_level_per_pixel() -> None:
    model, picture = TwoLevels(), image()
    with torch.no_grad():
        fine, coarse = (level[0, 0] for level in model.levels(picture).values())
    cam = layer_cam(model, picture)
    # Peaks of bilinear stretching: pixel (0, 0), and the last pixel of the lower right cell.
    # A coarse cell spreads its evidence over four times as many pixels.
    assert cam[0, 0] == 1
    assert cam[-1, -1].item() == pytest.approx((coarse[1, 3] / 4 / (3 * fine[0, 0])).item())


@pytest.mark.parametrize(
    ("boxes", "labels", "left", "right"),
    [
        ([LEFT], [1], True, False),
        ([RIGHT], [2], False, True),
        ([LEFT, RIGHT], [1, 2], True, True),
        ([LEFT], [2], False, False),  # wrong class
        ([[8.0, 0.0, 24.0, 16.0]], [1], False, False),  # IoU 1/3
        ([], [], False, False),
    ],
)
def test_a_target_leaves_only_what_is_right(
    boxes: list[list[float]], labels: list[int], left: bool, right: bool
) -> None:
    truth = target(boxes, labels)
    cam = layer_cam(Known(), image(), truth)
    for shown in (*gradient_saliency(Known(), image(), truth), cam):
        assert bool(shown[2:5, 2:5].any()) == left
        assert bool(shown[11:13, 35:37].any()) == right


@pytest.mark.parametrize("detector", DETECTORS)
def test_maps_of_every_detector(detector: str) -> None:
    model, picture = fresh(detector), image(50, 70)  # padded to 64 x 96
    cam = layer_cam(model, picture, confidence=0)
    for shown in (*gradient_saliency(model, picture, confidence=0), cam):
        assert shown.shape == (50, 70)
        assert shown.dtype == torch.float32
        assert not shown.requires_grad
        assert 0 <= shown.min() < shown.max() <= 1


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("detector", DETECTORS)
def test_nothing_sure_or_nothing_at_all_is_a_black_map(detector: str, threshold: float) -> None:
    model = fresh(detector)
    (model.roi_heads if detector == "fasterrcnn" else model).score_thresh = threshold
    picture = image(64, 64)
    assert len(model.eval()([picture])[0]["scores"]) == (0 if threshold else 100)
    cam = layer_cam(model, picture, confidence=0.9)
    assert not any(m.any() for m in (*gradient_saliency(model, picture, confidence=0.9), cam))


@pytest.mark.parametrize("frozen", [False, True])
def test_looking_leaves_no_trace(frozen: bool) -> None:
    model = fresh()
    model.backbone.rgb.eval()
    model.requires_grad_(not frozen)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    picture, random = image(64, 64), torch.get_rng_state()
    kept = picture.clone()

    rgb, _ = gradient_saliency(model, picture, confidence=0)
    cam = layer_cam(model, picture, confidence=0)

    assert rgb.any()
    assert cam.any()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad is not frozen for p in model.parameters())
    assert all((p.grad == 1).all() for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(picture, kept)
    assert not picture.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
