"""The two-stream networks whose channels are judged, with their data, training and loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.ops import FrozenBatchNorm2d

from ragrad_ext.detection.data.datasets import collate, open_data
from ragrad_ext.detection.models.two_stream import build
from ragrad_ext.estimators.research import sampled_cross_entropy

from . import crops
from .classifier import Classifier

DETECTOR_SIZE = (256, 192)  # width and height in pixels


class Sizes(NamedTuple):
    """``images`` in the batch that is judged, ``train`` in an epoch, and the epochs of a stage."""

    images: int
    train: int
    epochs: tuple[int, int, int]  # at initialisation, in the middle, at the end


class Data(NamedTuple):
    """Real pairs, where they are given: `flir_crops.npz`, and a folder with its labels."""

    flir: Path | None = None
    pairs: Path | None = None
    labels: str | None = None


@dataclass
class Subject:
    """A network at some point of its training, and the batch that it is judged on.

    Attributes:
        model, rgb, ir: the network and its two streams.
        data: what it is trained and judged on.
        loss: the loss of that batch, the same whenever it is called.
        sampled: the same with labels that the model draws, as `GaussNewtonBartlett` wants it; None
            for a loss that is no likelihood.
        train: one more epoch.
    """

    model: nn.Module
    rgb: nn.Module
    ir: nn.Module
    data: str
    loss: Callable[[], Tensor]
    sampled: Callable[[], Tensor] | None
    train: Callable[[], None]


class Fused(nn.Module):
    """Two backbones that end in features, added, and a linear classifier of three kinds."""

    def __init__(self, make: Callable[[], nn.Module], features: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.rgb, self.ir = make(), make()
            self.head = nn.Linear(features, 3)

    def forward(self, image: Tensor) -> Tensor:
        image = image - 0.5
        # torch's other kernels for attention have no second derivative on a CPU
        with sdpa_kernel(SDPBackend.MATH):
            fused = self.rgb(image[:, :3]) + self.ir(image[:, 3:].expand(-1, 3, -1, -1))
        return self.head(fused)


def resnet18(norm: str) -> nn.Module:
    """torchvision's, as it is, up to the pooled features; GroupNorm in groups of 16 channels."""
    layer = nn.BatchNorm2d if norm == "batch" else lambda c: nn.GroupNorm(c // 16, c)
    model: nn.Module = torchvision.models.resnet18(norm_layer=layer)
    model.fc = nn.Identity()
    return model


def vit() -> nn.Module:
    """torchvision's vision transformer, small: patches of 4 x 4 pixels, four layers of width 96."""
    model: nn.Module = torchvision.models.VisionTransformer(
        crops.SIDE, patch_size=4, num_layers=4, num_heads=4, hidden_dim=96, mlp_dim=192
    )
    model.heads = nn.Identity()
    return model


def classifier(model: Any, lr: float, seed: int, sizes: Sizes, data: Data) -> Subject:
    """A classifier of crops, real ones where they are given."""
    n = sizes.train + sizes.images
    images, labels = (
        crops.generated(n, seed) if data.flir is None else crops.flir(data.flir, n, seed)
    )
    held_out, truth = images[: sizes.images], labels[: sizes.images]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    draw = torch.Generator().manual_seed(seed)

    def train() -> None:
        order = torch.randperm(sizes.train, generator=draw) + sizes.images
        for batch in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()

    return Subject(
        model,
        model.rgb,
        model.ir,
        "generated" if data.flir is None else "flir",
        lambda: nn.functional.cross_entropy(model(held_out), truth),
        lambda: sampled_cross_entropy(model(held_out)),
        train,
    )


class Kept:
    """A function whose first result, while ``on``, is its result until it is forgotten."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.on, self.result = function, False, None

    def __call__(self, *args: Any) -> Any:
        if not self.on:
            return self.function(*args)
        if self.result is None:
            self.result = self.function(*args)
        return self.result


def faster_rcnn(seed: int, sizes: Sizes, data: Data) -> Subject:
    """Faster R-CNN on ResNet-18 twins whose BatchNorm was frozen before training.

    The frozen statistics are those of the first images under the initial weights: detectors usually
    take them from pretraining, which there is none of here.

    Regions proposed and sampled for the judged loss are those of the network as it is, whatever is
    then removed from it or moved: no gradient goes through their choice, and a loss of other
    regions differs by more than what a channel does.
    """
    pairs = open_data(
        data.pairs, "train", labels=data.labels,
        n=sizes.train + sizes.images, size=DETECTOR_SIZE, seed=seed,
    )  # fmt: skip
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = collate([pairs[i] for i in order[: sizes.images]])
    trained = order[sizes.images : sizes.images + sizes.train]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = build("fasterrcnn", "resnet18", len(pairs.classes), image_size=DETECTOR_SIZE)
    for stream in (model.backbone.rgb, model.backbone.ir):
        for module in list(stream.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over what follows
    with torch.no_grad(), torch.random.fork_rng():
        for i in trained[:16]:
            model(*collate([pairs[i]]))
    for stream in (model.backbone.rgb, model.backbone.ir):
        freeze_(stream)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    draw = torch.Generator().manual_seed(seed)

    def loss_of(batch: Any) -> Tensor:
        return torch.stack(list(model(*batch).values())).sum()

    regions = [Kept(model.rpn.filter_proposals)]
    regions += [Kept(part.fg_bg_sampler) for part in (model.rpn, model.roi_heads)]
    model.rpn.filter_proposals = regions[0]
    model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler = regions[1:]

    def loss() -> Tensor:
        for part in regions:
            part.on = True
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)  # torchvision draws the image's size, from one
                return loss_of(held_out)
        finally:
            for part in regions:
                part.on = False

    def train() -> None:
        for part in regions:
            part.result = None
        for batch in torch.tensor(trained)[torch.randperm(len(trained), generator=draw)].split(4):
            optimizer.zero_grad()
            loss_of(collate([pairs[int(i)] for i in batch])).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()

    name = "generated" if data.pairs is None else data.pairs.name
    return Subject(model, model.backbone.rgb, model.backbone.ir, name, loss, None, train)


def freeze_(module: nn.Module) -> None:
    """Every BatchNorm below ``module`` becomes torchvision's frozen one, with its statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            state = child.state_dict()
            frozen.load_state_dict({key: state[key] for key in frozen.state_dict()})
            setattr(module, name, frozen)
        else:
            freeze_(child)


class Network(NamedTuple):
    """What ``norm`` it has, how much is done with it in full and to try, and how it is made."""

    norm: str
    sizes: Sizes
    quick: Sizes
    make: Callable[[int, Sizes, Data], Subject]
    double_backward: bool = True


def small(norm: str) -> Network:
    """The four-convolution classifier: all of its rows are judged."""
    return Network(
        norm, Sizes(128, 4000, (0, 1, 3)), Sizes(8, 64, (0, 1, 2)),
        lambda seed, sizes, data: classifier(Classifier(norm, seed), 2e-3, seed, sizes, data),
    )  # fmt: skip


def fused(
    norm: str, make: Callable[[], nn.Module], features: int, sizes: Sizes, quick: Sizes
) -> Network:
    return Network(
        norm, sizes, quick,
        lambda seed, sizes, data: classifier(
            Fused(make, features, seed), 1e-3, seed, sizes, data
        ),
    )  # fmt: skip


TRY = Sizes(4, 16, (0, 1, 2))
NETWORKS: dict[str, Network] = {
    "small-batch": small("batch"),
    "small-group": small("group"),
    "small-none": small("none"),
    "resnet18-batch": fused(
        "batch", lambda: resnet18("batch"), 512, Sizes(64, 2000, (0, 3, 6)), TRY
    ),
    "resnet18-group": fused(
        "group", lambda: resnet18("group"), 512, Sizes(64, 2000, (0, 3, 6)), TRY
    ),
    "vit": fused("layer", vit, 96, Sizes(64, 2000, (0, 3, 6)), TRY),
    "fasterrcnn": Network(
        "frozen", Sizes(4, 120, (0, 3, 6)), Sizes(1, 4, (0, 1, 2)), faster_rcnn,
        double_backward=False,
    ),
}  # fmt: skip
