"""The commands train, evaluate, compare and demo. Loads torchvision and the rest when one runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .settings import CHOICES, Settings

Command = Callable[[argparse.Namespace], int]

EXTRA = ("torchvision", "pycocotools", "matplotlib", "tqdm", "PIL", "scipy")
HELP = {
    "data": 'folder of visible/infrared pairs, or "scenes": generated, no download',
    "labels": "folder of labels inside --data, where it holds several",
    "method": "train with or without RaGrad",
    "detector": "torchvision's detection head",
    "backbone": "each of the two streams; light trains on two CPU cores",
    "init": "checkpoint to start from, trained for the same classes; {seed} stands for the seed",
    "seed": "decides initial weights, order and augmentation, whatever the method",
    "device": "cpu, cuda, cuda:1, ...; auto: the GPU where there is one",
    "workers": "processes that read images (0: none beside this one)",
    "epochs": "passes over the training split",
    "batch_size": "pairs per step",
    "optimizer": "sgd has a momentum of 0.9",
    "lr": "learning rate after the warm-up; then it falls to 0 along a cosine",
    "weight_decay": "of weights; biases and norms are not decayed",
    "warmup": "epochs until --lr is reached",
    "clip": "largest norm of the gradient, after the correction (0: any)",
    "augment": "flip, scale and crop both images together",
    "scenes": "scenes to generate for training; validation has half as many",
    "width": "of generated scenes, pixels",
    "height": "of generated scenes, pixels",
    "evaluate_every": "epochs between evaluations; the last epoch always has one",
    "effectiveness": "RaGrad: the estimator of Eq. 1",
    "every": "RaGrad: steps between refreshes of the curvature (hutchinson, finite-difference)",
    "alpha": "RaGrad: decay of the sensitivity, Eq. 4",
    "reliability": "RaGrad: both factors of Eq. 5 or one alone",
    "scope": "RaGrad: Eq. 3 normalises over the model or over each layer",
}
DEMO = Settings(epochs=8, evaluate_every=2)


def add_commands(subparsers: Any) -> None:
    """Adds train, evaluate, compare and demo to an argparse parser's subparsers.

    Each sets `run`, a function of the parsed arguments that returns the exit code: 0, 2 with one
    line on stderr for a mistake of the user's, 130 after Ctrl-C.
    """
    train = _add(subparsers, "train", _train, "train one detector and evaluate it")
    _add_settings(train, Settings(), leave_out=())
    _add_folder(train, "runs/train")

    evaluate = _add(subparsers, "evaluate", _evaluate, "AP of a checkpoint, by condition")
    evaluate.add_argument("--checkpoint", required=True, help="a checkpoint.pt of train or compare")
    evaluate.add_argument("--data", help="other data than it was trained for")
    evaluate.add_argument("--labels", help="folder of labels inside --data")
    evaluate.add_argument(
        "--split", choices=("val", "train", "all"), default="val", help="which images"
    )
    evaluate.add_argument("--device", default="auto", help=HELP["device"])
    evaluate.add_argument("--batch-size", type=int, default=8, help="images at once")

    compare = _add(
        subparsers, "compare", _compare, "train the same seeds with and without RaGrad, and report"
    )
    _add_settings(compare, Settings(), leave_out=("method", "seed"))
    _add_seeds(compare, [0, 1, 2])
    _add_folder(compare, "runs/compare")

    demo = _add(subparsers, "demo", _demo, "compare on generated scenes: minutes on two CPU cores")
    _add_seeds(demo, [0, 1])
    demo.add_argument("--epochs", type=int, default=DEMO.epochs, help=HELP["epochs"])
    demo.add_argument("--device", default="auto", help=HELP["device"])
    _add_folder(demo, "runs/demo")
    # Images this small gain nothing from a second thread, and lose much on a busy machine.
    demo.set_defaults(threads=1)


def _add(subparsers: Any, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--threads", type=int, help="CPU threads; None: torch's choice")
    parser.set_defaults(run=_guarded(command))
    return parser


def _add_settings(
    parser: argparse.ArgumentParser, defaults: Settings, leave_out: tuple[str, ...]
) -> None:
    """An option for every field of `Settings`."""
    for field in fields(Settings):
        if field.name in leave_out:
            continue
        default = getattr(defaults, field.name)
        kind: dict[str, Any] = {"type": type(default) if default is not None else str}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif field.name in CHOICES:
            kind = {"choices": CHOICES[field.name]}
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, default=default, help=HELP[field.name], **kind)


def _add_seeds(parser: argparse.ArgumentParser, default: list[int]) -> None:
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=CHOICES["method"],
        default=list(CHOICES["method"]),
        help="what to compare; the first is the baseline",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=default, help="each method trains with each"
    )


def _add_folder(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", type=Path, default=Path(default), help="folder of the results")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on with what --out holds")
    either.add_argument("--overwrite", action="store_true", help="replace the runs in --out")


def _guarded(command: Command) -> Command:
    """`command` with the user's mistakes as one line instead of a traceback."""

    def run(args: argparse.Namespace) -> int:
        try:
            if args.threads is not None:
                _set_threads(args.threads)
            return command(args)
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package not in EXTRA:
                raise
            message = f'{package} is not installed; run pip install "ragrad_ext[detection]"'
        except (ValueError, OSError, FloatingPointError) as error:
            message = str(error)
        except KeyboardInterrupt as stop:
            print(f"\n{stop or 'interrupted'}", file=sys.stderr)
            return 130
        print(f"error: {message}", file=sys.stderr)
        return 2

    return run


def _set_threads(count: int) -> None:
    import torch

    if count < 1:
        raise ValueError(f"--threads must be 1 or more, got {count}")
    torch.set_num_threads(count)


def _settings(args: argparse.Namespace) -> Settings:
    given = vars(args)
    return Settings(**{f.name: given[f.name] for f in fields(Settings) if f.name in given})


def _train(args: argparse.Namespace) -> int:
    from .training.train import train

    run = train(_settings(args), args.out, resume=args.resume, overwrite=args.overwrite)
    print(ap_table(run.ap))
    print(f"{args.out / 'checkpoint.pt'}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from .evaluation.evaluate import average_precision, detect
    from .training.checkpoint import load_checkpoint
    from .training.model import load_trained, open_split, pick_device

    settings = Settings.from_dict(load_checkpoint(Path(args.checkpoint))["settings"])
    if args.data is not None:
        settings = settings.change(data=args.data, labels=args.labels)
    data = open_split(settings, None if args.split == "all" else args.split)
    model, _ = load_trained(args.checkpoint, data, args.device)
    device = pick_device(args.device)
    found = detect(model, data, device, args.batch_size, progress=True)
    print(ap_table(average_precision(data, found), data.conditions))
    return 0


def _compare(args: argparse.Namespace) -> int:
    return _compared(args, _settings(args), args.resume)


def _demo(args: argparse.Namespace) -> int:
    settings = DEMO.change(epochs=args.epochs, device=args.device)
    return _compared(args, settings, resume=not args.overwrite)  # a second call goes on


def _compared(args: argparse.Namespace, settings: Settings, resume: bool) -> int:
    from .compare import compare

    report = compare(
        settings,
        args.out,
        methods=args.methods,
        seeds=args.seeds,
        resume=resume,
        overwrite=args.overwrite,
        command=shlex.join(["python", "-m", "ragrad_ext", *sys.argv[1:]]),
    )
    print(f"report: {report}")
    return 0


def ap_table(ap: Mapping[str, Mapping[str, float]], conditions: Sequence[str] = ()) -> str:
    """AP, AP50 and AP75 in percent, a line for each condition; with the images behind each."""
    lines = [f"{'':12}{'images':>8}{'AP':>8}{'AP50':>8}{'AP75':>8}"]
    for condition, values in ap.items():
        images = len(conditions) if condition == "overall" else conditions.count(condition)
        numbers = "".join(f"{100 * values[metric]:8.1f}" for metric in ("AP", "AP50", "AP75"))
        lines.append(f"{condition:12}{images or '':>8}{numbers}")
    return "\n".join(lines)
