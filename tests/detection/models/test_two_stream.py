"""The two-stream part, and that torchvision's detectors learn on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ragrad_ext.detection.evaluation.evaluate import average_precision, detect
from ragrad_ext.detection.models.backbones import BACKBONES
from ragrad_ext.detection.models.detectors import DETECTORS
from ragrad_ext.detection.models.two_stream import PairTransform, build


class Rectangles:
    """Four dim images: class a is a tall rectangle in RGB alone, class b a wide one in infrared."""

    classes = ("a", "b")
    conditions = ("all",) * 4

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.samples = [self._draw(i, generator) for i in range(4)]

    def _draw(self, i: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        image = torch.rand(4, 96, 128, generator=generator) * 0.2
        boxes, labels = [], []
        for k, (x, y) in enumerate([(8, 10), (60, 20), (30, 55), (90, 50)]):
            x, y = x + 3 * i, y + 2 * i
            width, height = (30, 18) if k % 2 else (12, 24)
            channels = slice(3, 4) if k % 2 else slice(0, 3)
            image[channels, y : y + height, x : x + width] += 0.7
            boxes.append([x, y, x + width, y + height])
            labels.append(1 + k % 2)
        return image, {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        return self.samples[index]


def train(model: nn.Module, data: Rectangles, steps: int) -> list[float]:
    images, targets = map(list, zip(*data.samples, strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    totals = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 20)
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        totals.append(loss.item())
    return totals


@pytest.mark.parametrize("backbone", BACKBONES)
def test_twins_are_equal_in_layout_and_separate_in_weight(backbone: str) -> None:
    model: Any = build("retinanet", backbone).backbone
    rgb, ir = dict(model.rgb.named_parameters()), dict(model.ir.named_parameters())
    assert {k: v.shape for k, v in rgb.items()} == {k: v.shape for k, v in ir.items()}
    assert not {v.data_ptr() for v in rgb.values()} & {v.data_ptr() for v in ir.values()}
    assert all(not torch.equal(rgb[k], ir[k]) for k in rgb if rgb[k].ndim > 1)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(("backbone", "channels"), [("light", 64), ("resnet18", 256)])
def test_three_levels_at_strides_8_16_32(backbone: str, channels: int) -> None:
    model: Any = build(backbone=backbone).backbone
    model.eval()
    levels = model(torch.rand(2, 4, 64, 96))
    assert model.out_channels == channels
    assert {k: tuple(v.shape) for k, v in levels.items()} == {
        "0": (2, channels, 8, 12),
        "1": (2, channels, 4, 6),
        "2": (2, channels, 2, 3),
    }


def test_fusion_adds_the_streams_and_a_hook_sees_it() -> None:
    model: Any = build().backbone
    model.eval()
    seen: list[dict[str, Tensor]] = []
    model.fuse.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.rand(1, 4, 64, 64)
    model(images)
    rgb, ir = model.rgb(images[:, :3]), model.ir(images[:, [3, 3, 3]])
    assert list(seen[0]) == ["0", "1", "2"]
    assert all(torch.equal(seen[0][k], rgb[k] + ir[k]) for k in rgb)


def test_light_has_the_promised_size() -> None:
    model: Any = build()
    convolutions = [m for m in model.backbone.rgb.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 16, 32, 32, 64, 64, 128, 128, 128, 128]
    assert [c.stride[0] for c in convolutions] == [2, 1] * 5


def test_the_random_state_of_the_caller_decides_the_weights() -> None:
    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(build().state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(weights(3), weights(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(3), weights(4), strict=True))


def test_images_keep_their_size_unless_asked() -> None:
    images = [torch.rand(4, 50, 70), torch.rand(4, 40, 90)]
    boxes = torch.tensor([[7.0, 5.0, 35.0, 25.0]])
    batch, targets = PairTransform()(images, [{"boxes": boxes}, {"boxes": boxes}])
    assert batch.image_sizes == [(50, 70), (40, 90)]
    assert batch.tensors.shape == (2, 4, 64, 96)
    assert torch.equal(targets[0]["boxes"], boxes)
    red = (images[0][0] - 0.485) / 0.229
    infrared = (images[0][3] - 0.449) / 0.226
    torch.testing.assert_close(batch.tensors[0, 0, :50, :70], red)
    torch.testing.assert_close(batch.tensors[0, 3, :50, :70], infrared)

    resize = PairTransform((140, 50)).eval()  # twice as wide, as high as before
    batch, targets = resize(images[:1], [{"boxes": boxes}])
    assert batch.image_sizes == [(50, 140)]
    assert targets[0]["boxes"].tolist() == [[14, 5, 70, 25]]
    back = resize.postprocess([{"boxes": targets[0]["boxes"]}], batch.image_sizes, [(50, 70)])
    assert torch.equal(back[0]["boxes"], boxes)


@pytest.mark.parametrize("detector", ["fcos", "retinanet"])
def test_a_label_is_the_index_of_its_logit(detector: str) -> None:
    model: Any = build(detector, num_classes=3)
    head = model.head.classification_head
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
    model([torch.rand(4, 64, 64)], [target])["classification"].backward()
    pull = head.cls_logits.bias.grad.view(-1, 4).sum(0)  # (background, 1, 2, 3)
    assert pull[2] < 0
    assert (pull[[0, 1, 3]] > 0).all()


def test_faster_rcnn_has_one_logit_per_label_and_background() -> None:
    model: Any = build("fasterrcnn", num_classes=3)
    assert model.roi_heads.box_predictor.cls_score.out_features == 4


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_few_steps_reach_every_weight_and_lower_the_loss(detector: str) -> None:
    model: Any = build(detector, num_classes=2)
    totals = train(model, Rectangles(), steps=12)
    assert torch.tensor(totals).isfinite().all()
    assert totals[-1] < 0.7 * totals[0]
    assert all(p.grad is not None and p.grad.any() for p in model.backbone.parameters())


@pytest.mark.parametrize("detector", DETECTORS)
def test_images_without_objects_and_of_unequal_size(detector: str) -> None:
    model = build(detector)
    images = [torch.rand(4, 64, 64), torch.rand(4, 40, 90)]
    targets = [
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "condition": "fog",
        },
        {"boxes": torch.tensor([[1.0, 2.0, 30.0, 20.0]]), "labels": torch.tensor([3])},
    ]
    losses = model(images, targets)
    assert torch.stack(list(losses.values())).isfinite().all()
    found = model.eval()(images)
    assert [set(f) for f in found] == [{"boxes", "labels", "scores"}] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yolo", "light", 3), "unknown detector 'yolo'.*fcos, retinanet, fasterrcnn"),
        (("fcos", "vgg", 3), "unknown backbone 'vgg'.*light, resnet18, resnet50"),
        (("fcos", "light", 0), "at least 1; got 0"),
    ],
)
def test_bad_choices_are_named(arguments: tuple[str, str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*arguments)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_without_four_channels_is_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"4 channels .* \({channels}, 64, 64\)"):
        build().eval()([torch.rand(channels, 64, 64)])


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_it_learns_four_images_by_heart(detector: str) -> None:
    model, data = build(detector, num_classes=2), Rectangles()
    train(model, data, steps=35)
    assert average_precision(data, detect(model, data))["overall"]["AP50"] > 0.9


def test_no_side_of_a_box_starts_dead() -> None:
    """FCOS's distances pass a ReLU: a side below 0 everywhere would get no gradient at all."""
    torch.manual_seed(0)
    model: Any = build("fcos", "light", 3).eval()
    distances: list[Tensor] = []
    model.head.regression_head.bbox_reg.register_forward_hook(
        lambda module, args, output: distances.append(output)
    )
    with torch.no_grad():
        model([torch.rand(4, 96, 128)])
    assert len(distances) == 3
    assert all((d > 0).float().mean((0, 2, 3)).min() > 0.9 for d in distances)
