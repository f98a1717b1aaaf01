"""The training loop: epochs, steps, checkpoints, and a clean stop."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.batches import epoch_batches, load_batches
from ..data.transforms import PairedAugment
from ..evaluation.evaluate import average_precision, detect
from ..report.report import LayerHistory, Run
from ..seeds import STEP, derive_seed, own_randomness, seed_
from ..settings import Settings
from .checkpoint import (
    check_classes,
    check_settings,
    load_checkpoint,
    load_model_,
    save_checkpoint,
)
from .meter import Meter, Row, write_log
from .model import (
    learning_rate,
    make_model,
    make_optimizer,
    make_ragrad,
    open_split,
    pick_device,
)
from .stopping import Interrupted, stop_signal

READ_EVERY = 10  # steps between two looks at the device: each one waits for it


class Trainer:
    """The state of a run. `epoch` counts finished epochs; `meter` holds the one under way."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.data, self.val = open_split(settings, "train"), open_split(settings, "val")
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
        """Takes the weights of a checkpoint; raises before anything changed if they do not fit."""
        state = load_checkpoint(path)
        check_classes(state["classes"], self.data.classes, path)
        load_model_(self.model, state["model"], path)

    def run(self, progress: bool) -> Run:
        write_log(self.folder, self.history)
        with stop_signal() as stop, own_randomness(self.device), self._bar(progress) as bar:
            while self.epoch < self.settings.epochs:
                self._train_epoch(stop, bar)
                self._finish_epoch()
        return Run(
            method=self.settings.method,
            seed=self.settings.seed,
            ap=self.ap,
            epochs=self.history,
            layers=self._layer_history(),
        )

    def _train_epoch(self, stop: Event, bar: tqdm) -> None:
        """The rest of the epoch under way, `meter.steps` of which are done already."""
        s, epoch = self.settings, self.epoch
        batches = self._batches()
        first, losses = self.meter.steps, []
        bar.set_description(f"{s.method} seed {s.seed} epoch {epoch + 1}/{s.epochs}", False)
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
            bar.set_postfix({**self.meter.shown(), **self._shown()}, refresh=False)
            bar.update()
            if stop.is_set():
                break
        self._read(losses)
        self.meter.seconds += time.perf_counter() - began
        if stop.is_set():
            self._save()
            raise Interrupted(
                f"stopped in epoch {epoch + 1} of {s.epochs} after step {self.meter.steps} of "
                f"{len(batches)}, saved in {self.folder}; the same command with --resume goes on "
                "from there"
            )

    def _batches(self) -> list[list[int]]:
        """The order of the epoch under way."""
        s = self.settings
        return epoch_batches(len(self.data), s.batch_size, s.seed, self.epoch)

    def _bar(self, progress: bool) -> tqdm:
        """One bar for the run: alive at a terminal, a line now and then in a file."""
        per_epoch = len(self._batches())
        return tqdm(
            total=self.settings.epochs * per_epoch,
            initial=self.epoch * per_epoch + self.meter.steps,
            disable=not progress,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
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
        """Books the losses not yet looked at. Waits for the device."""
        for value in torch.stack(losses).tolist() if losses else []:
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} in epoch {self.epoch + 1}, step {self.meter.steps + 1}; "
                    f"what {self.folder} holds of earlier epochs is kept; train anew with a lower "
                    "--lr, a longer --warmup or a smaller --clip"
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
        """Goes on from the folder's checkpoint; raises before anything changed if it differs."""
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
