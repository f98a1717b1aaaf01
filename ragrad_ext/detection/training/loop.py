"""The training loop: epochs, steps, checkpoints, and a clean stop."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import epoch_batches, load_batches
from ..data.splits import Splits
from ..data.transforms import PairedAugment
from ..device import pick_device
from ..evaluation.evaluate import average_precision, detect
from ..runs import LayerHistory, Row, Run, write_log
from ..seeds import STEP, derive_seed, own_randomness, seed_
from ..settings import Settings
from .checkpoint import (
    check_classes,
    check_settings,
    load_checkpoint,
    load_model_,
    save_checkpoint,
)
from .correction import make_ragrad
from .meter import Meter
from .model import make_model
from .optimizer import learning_rate, make_optimizer
from .progress import Progress, Watch
from .stopping import Interrupted, Stop

READ_EVERY = 10  # steps between two looks at the device: each one waits for it


class Trainer:
    """The state of a run. `epoch` counts finished epochs; `meter` holds the one under way."""

    def __init__(self, settings: Settings, folder: Path, data: Splits) -> None:
        self.settings, self.folder = settings, folder
        self.data, self.val = data
        self.device = pick_device(settings.device)
        self.model = make_model(settings, len(self.data.classes)).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # a step takes a sixth less on a CPU
        self.ragrad = make_ragrad(self.model, settings) if settings.method == "ragrad" else None
        self.optimizer = make_optimizer(self.model, settings)
        self.augment = PairedAugment() if settings.augment else None
        self.epoch = 0
        self.meter = Meter()
        self.history: list[Row] = []
        self.layers: list[Tensor] = []  # (3, L) for each finished epoch
        self.ap: dict[str, dict[str, float]] = {}  # of the last evaluation

    def start_from_(self, path: Path) -> None:
        """Takes the weights of a checkpoint; if they do not fit, raises before any change."""
        state = load_checkpoint(path)
        check_classes(state["classes"], self.data.classes, path)
        load_model_(self.model, state["model"], path)

    def run(self, watch: Watch, stop: Stop) -> Run:
        """All epochs that are left. `watch` gets the progress of every step.

        Once `stop` is set, saves after the step and raises Interrupted.
        """
        write_log(self.folder, self.history)
        with own_randomness(self.device):
            while self.epoch < self.settings.epochs:
                self._train_epoch(watch, stop)
                self._finish_epoch()
        return Run(
            method=self.settings.method,
            seed=self.settings.seed,
            ap=self.ap,
            epochs=self.history,
            layers=self._layer_history(),
        )

    def _train_epoch(self, watch: Watch, stop: Stop) -> None:
        """The rest of the epoch under way, `meter.steps` of which are done already."""
        s, epoch = self.settings, self.epoch
        batches = self._batches()
        first, losses = self.meter.steps, []
        self.model.train()
        began = time.perf_counter()
        loader = load_batches(
            self.data,
            batches[first:],
            augment=self.augment,
            seed=s.seed,
            epoch=epoch,
            workers=s.workers,
            pin_memory=self.device.type == "cuda",
        )
        for step, (images, targets) in enumerate(loader, first):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(s, epoch * len(batches) + step, len(batches))
            dice = derive_seed(s.seed, STEP, epoch, step)
            losses.append(self._step(images, targets, dice))
            look = step % READ_EVERY == 0
            if look or self.device.type == "cpu":
                self._read(losses)
            if look and self.ragrad is not None:
                self.meter.read(self.ragrad)
            watch(self._progress(step + 1, len(batches)))
            if stop.is_set():
                break
        self._read(losses)
        self.meter.seconds += time.perf_counter() - began
        if stop.is_set():
            self._save()
            raise Interrupted(
                f"stopped in epoch {epoch + 1} of {s.epochs} after step {self.meter.steps} of "
                f"{len(batches)}, saved in {self.folder}; the same command with --resume continues "
                "from there"
            )

    def _batches(self) -> list[list[int]]:
        """The order of the epoch under way."""
        s = self.settings
        return epoch_batches(len(self.data), s.batch_size, s.seed, self.epoch)

    def _progress(self, step: int, per_epoch: int) -> Progress:
        """After `step` steps of the epoch under way."""
        return Progress(
            self.epoch * per_epoch + step,
            self.settings.epochs * per_epoch,
            self.epoch + 1,
            {**self.meter.shown(), **self._shown()},
        )

    def _shown(self) -> dict[str, str]:
        return {"AP": f"{100 * self.ap['overall']['AP']:.1f}"} if self.ap else {}

    def _step(self, images: list[Tensor], targets: list[dict[str, Any]], dice: int) -> Tensor:
        """One update; returns the loss without waiting for it. `dice` seeds what is sampled."""
        images = [image.to(self.device, non_blocking=True) for image in images]
        targets = [
            {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in target.items()}
            for target in targets
        ]
        self.optimizer.zero_grad()

        def forward() -> Tensor:
            seed_(dice, self.device)
            return torch.stack(list(self.model(images, targets).values())).sum()

        loss = forward()
        if self.ragrad is None:
            loss.backward()
        else:
            self.ragrad.backward(loss, closure=forward)
            self.ragrad.correct_()
        if self.settings.clip:  # after the correction: clipping keeps every direction
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        return loss.detach()

    def _read(self, losses: list[Tensor]) -> None:
        """Adds the losses of the latest steps to the meter. Waits for the device."""
        for value in torch.stack(losses).tolist() if losses else []:
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} in epoch {self.epoch + 1}, step {self.meter.steps + 1}; "
                    f"{self.folder} keeps the earlier epochs; train again with a lower --lr, a "
                    "longer --warmup or a smaller --clip"
                )
            self.meter.loss += value
            self.meter.steps += 1
        losses.clear()

    def _finish_epoch(self) -> None:
        s = self.settings
        row = self.meter.row(self.epoch + 1, self.optimizer.param_groups[0]["lr"])
        self.history.append(row)
        if (layers := self.meter.layer_means()) is not None:
            self.layers.append(layers)
        self.epoch += 1
        self.meter = Meter()
        if self.epoch % s.evaluate_every == 0 or self.epoch == s.epochs:
            detections = detect(self.model, self.val, self.device, s.batch_size, progress=False)
            self.ap = average_precision(self.val, detections)
            row.update(self.ap["overall"])
        self._save()
        write_log(self.folder, self.history)

    def _save(self) -> None:
        save_checkpoint(
            self.folder / "checkpoint.pt",
            {
                "settings": self.settings.to_dict(),
                "classes": list(self.data.classes),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ragrad": None if self.ragrad is None else self.ragrad.state_dict(),
                "epoch": self.epoch,
                "meter": self.meter.to_dict(),
                "history": self.history,
                "layers": self.layers,
                "ap": self.ap,
            },
        )

    def load_(self) -> None:
        """Continues from the folder's checkpoint; if it differs, raises before any change."""
        path = self.folder / "checkpoint.pt"
        state = load_checkpoint(path)
        check_settings(Settings.from_dict(state["settings"]), self.settings, path)
        check_classes(state["classes"], self.data.classes, path)
        load_model_(self.model, state["model"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ragrad is not None:
            self.ragrad.load_state_dict(state["ragrad"])
        self.epoch, self.meter = state["epoch"], Meter(**state["meter"])
        self.history, self.layers, self.ap = state["history"], state["layers"], state["ap"]

    def _layer_history(self) -> LayerHistory | None:
        if self.ragrad is None:
            return None
        conflicts, rgb, ir = torch.stack(self.layers, dim=1).numpy()
        return LayerHistory(
            names=[rgb_name for rgb_name, _ in self.ragrad.pairs.names],
            epochs=np.array([row["epoch"] for row in self.history]),
            conflicts=conflicts,
            rgb=rgb,
            ir=ir,
        )
