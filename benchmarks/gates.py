"""Where should the gate of a row lie? Rank correlation with Eq. 1, place by place, kind by kind.

A gate linearises the loss at one tensor t after the row: ``E = sum (t' - t) dL/dt``, where t' is
what t is without the row. For small two-stream networks, one for each kind of layer that may
follow a convolution or linear layer, at initialisation and after one epoch, every row is really
removed (Eq. 1), and each place of the gate is computed literally, row by row:

- ``row``: t is the layer's own output, so that E is -g.theta; ``row, bias too`` removes its bias;
- ``norm``: t is the output of the norm after it; ``gain``: the same, but all of the channel gone
  except the norm's bias, -gamma dL/dgamma; ``norm, bias too``: that gone as well, -sum t dL/dt;
- ``activation``: t is the output of the activation; ``activation, others norm``: so for the row's
  own channel, and the output of the norm for the channels that the removal moves through it.

A row that has no such place counts with ``row``. ``Gate`` is the library's own estimate.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from ragrad_ext import Gate, RaGrad, audit, pair_parameters

from . import crops, record
from .gate_networks import FROZEN, KINDS, Network, Stage, stages

PLACES = (
    "row",
    "row, bias too",
    "gain",
    "norm, bias too",
    "norm",
    "activation, others norm",
    "activation",
)
ESTIMATES = (*PLACES, "Gate")
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/gates.json"))
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64, help="in the batch that is audited")
    parser.add_argument("--train", type=int, default=960, help="crops of one epoch")
    args = parser.parse_args()
    data = [crops.generated(args.images + args.train, seed) for seed in range(args.seeds)]
    rows: list[dict[str, Any]] = []
    for kind in args.kinds:
        for seed, (images, labels) in enumerate(data):
            rows += run(kind, seed, images, labels, args.images)
        show(kind, [row for row in rows if row["kind"] == kind])
    record.write(args.json, "benchmarks.gates", rows)
    print(f"written to {args.json}")


def run(kind: str, seed: int, images: Tensor, labels: Tensor, n: int) -> Iterator[dict[str, Any]]:
    """Audit one network on the first n images, before and after an epoch on the others."""
    model = Network(kind, seed)
    batch, train = (images[:n], labels[:n]), (images[n:], labels[n:])
    if kind.startswith(FROZEN):  # after a first epoch, as after pretraining
        epoch(model, *train)
        model.freeze()
    for epochs in (0, 1):
        if epochs:
            epoch(model, *train)
        found = audited(model, *batch)
        yield {"kind": kind, "seed": seed, "epochs": epochs, **found}


def epoch(model: Network, images: Tensor, labels: Tensor) -> None:
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=3e-3)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for batch in order.split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


def audited(model: Network, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Spearman with Eq. 1 over all rows of both streams, for every place and for `Gate`."""

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(images), labels)

    rgb, ir = ([stage.weight for stage in stages(m)] for m in (model.rgb, model.ir))
    pairs = pair_parameters(rgb, ir, model=model)
    removed = audit.counterfactual(loss, rgb, ir, channel_axes=pairs.channel_axes, progress=False)
    truth = torch.cat([*removed.rgb, *removed.ir])
    here = loss()
    places = [at_places(stage, here) for m in (model.rgb, model.ir) for stage in stages(m)]
    effect = {name: torch.cat([p.get(name, p["row"]) for p in places]) for name in PLACES}
    gate = Gate()
    ragrad = RaGrad(pairs, effectiveness=gate)
    model.zero_grad()
    ragrad.backward(loss())
    ragrad.correct_()
    assert ragrad.repa.effect is not None
    effect["Gate"] = ragrad.repa.effect.flatten()
    assert gate.places is not None
    rows = Counter[str]()
    for side in gate.places:
        for place, channels in zip(side, ragrad.repa.layout.channels, strict=True):
            rows[place.kind] += channels
    return {
        "rows": len(truth),
        "loss": here.item(),
        "spearman": {name: float(spearmanr(truth, effect[name]).statistic) for name in ESTIMATES},
        "gate_rows": dict(rows),
    }


def at_places(stage: Stage, loss: Tensor) -> dict[str, Tensor]:
    """E of every row of one layer, (C,), for each place that it has; literally, row by row."""
    points, axis = stage.points, stage.axis
    grads = torch.autograd.grad(loss, list(points.values()), retain_graph=True)
    slope = {name: g.double() for name, g in zip(points, grads, strict=True)}
    value = {name: t.detach().double() for name, t in points.items()}
    row = points["row"].detach()
    channels = row.shape[axis]

    def of_channels(product: Tensor) -> Tensor:
        return product.movedim(axis, 0).flatten(1).sum(1)

    def constant(layer: nn.Module) -> Tensor:
        bias = getattr(layer, "bias", None)
        shape = [channels if k == axis else 1 for k in range(row.ndim)]
        return torch.zeros(shape) if bias is None else bias.detach().view(shape)

    found = {"row, bias too": -of_channels(value["row"] * slope["row"])}
    if stage.norm is not None:
        found["norm, bias too"] = -of_channels(value["norm"] * slope["norm"])
        found["gain"] = of_channels((constant(stage.norm) - value["norm"]) * slope["norm"])
    own: dict[str, list[Tensor]] = {name: [] for name in points}
    whole: dict[str, list[Tensor]] = {name: [] for name in points}
    left = constant(stage.layer)
    with torch.no_grad():
        for i in range(channels):
            without = row.clone()
            without.select(axis, i).copy_(left.select(axis, i).expand_as(without.select(axis, i)))
            for name, t in stage.after(without, stage.x).items():
                change = (t - value[name]) * slope[name]
                whole[name].append(change.sum())
                if t.shape == row.shape:
                    own[name].append(change.select(axis, i).sum())
    found |= {name: torch.stack(parts) for name, parts in whole.items()}
    if "norm" in points and "activation" in points:
        others = found["norm"] - torch.stack(own["norm"])
        found["activation, others norm"] = others + torch.stack(own["activation"])
    return found


def show(kind: str, rows: list[dict[str, Any]]) -> None:
    print(kind, rows[-1]["gate_rows"], flush=True)
    for name in ESTIMATES:
        columns = []
        for epochs in (0, 1):
            values = [row["spearman"][name] for row in rows if row["epochs"] == epochs]
            median = statistics.median(values)
            columns.append(f"{median:.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"    {name:24} {'   '.join(columns)}", flush=True)


if __name__ == "__main__":
    main()
