"""The commands train, evaluate, compare and demo. Each loads torchvision and the rest when it runs.

Options of training are the fields of `Settings`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import Settings

if TYPE_CHECKING:
    from .compare import Comparison

Command = Callable[[argparse.Namespace], int]

EXTRA = ("torchvision", "pycocotools", "matplotlib", "tqdm", "PIL", "scipy")
FIELDS = {field.name: field for field in fields(Settings)}
METHODS = FIELDS["method"].metadata["allowed"]
# Small enough for minutes on two cores, long enough to find most objects.
DEMO = Settings(epochs=8, scenes=128, width=128, height=96, evaluate_every=4)


def add_commands(subparsers: Any) -> None:
    """Adds train, evaluate, compare and demo to an argparse parser's subparsers.

    Each sets `run`, a function of the parsed arguments that returns the exit code: 0, 2 after a
    mistake of the user's (one message on stderr), 130 after Ctrl-C.
    """
    train = _add(subparsers, "train", _train, "train one detector and evaluate it")
    _add_settings(train, leave_out=())
    _add_threads(train, None, "CPU threads; None: torch's choice")
    _add_folder(train, "runs/train")

    evaluate = _add(subparsers, "evaluate", _evaluate, "AP of a checkpoint, by condition")
    evaluate.add_argument("--checkpoint", required=True, help="a checkpoint.pt of train or compare")
    evaluate.add_argument("--data", help="other data than it was trained for")
    evaluate.add_argument("--labels", help="folder of labels inside --data")
    evaluate.add_argument(
        "--split", choices=("val", "train", "all"), default="val", help="which images"
    )
    _add_option(evaluate, "device")
    evaluate.add_argument("--batch-size", type=int, default=8, help="images at once")
    _add_threads(evaluate, None, "CPU threads; None: torch's choice")

    compare = _add(
        subparsers, "compare", _compare, "train the same seeds with and without RaGrad, and report"
    )
    _add_settings(compare, leave_out=("method", "seed"))
    _add_plan(compare)
    _add_threads(compare, None, "CPU threads of each run; None: the cores divided by --jobs")
    _add_folder(compare, "runs/compare")

    demo = _add(subparsers, "demo", _demo, "compare on generated scenes: minutes on two CPU cores")
    _add_plan(demo)
    demo.add_argument("--epochs", type=int, default=DEMO.epochs, help=_help("epochs"))
    _add_option(demo, "device")
    # Images this small gain nothing from a second thread, and lose much on a busy machine.
    _add_threads(demo, 1, "CPU threads of each run")
    _add_folder(demo, "runs/demo")


def _add(subparsers: Any, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(run=_guarded(command))
    return parser


def _add_settings(parser: argparse.ArgumentParser, leave_out: Sequence[str]) -> None:
    for name in FIELDS:
        if name not in leave_out:
            _add_option(parser, name)


def _add_option(parser: argparse.ArgumentParser, name: str) -> None:
    """The option of a field of `Settings`."""
    field: Field[Any] = FIELDS[name]
    allowed, default = field.metadata["allowed"], field.default
    kind: dict[str, Any] = {"type": type(default) if default is not None else str}
    if isinstance(default, bool):
        kind = {"action": argparse.BooleanOptionalAction}
    elif isinstance(allowed, tuple) and isinstance(default, str):
        kind = {"choices": allowed}
    parser.add_argument("--" + name.replace("_", "-"), default=default, help=_help(name), **kind)


def _help(name: str) -> str:
    return str(FIELDS[name].metadata["help"])


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        help="what to compare; the first is the baseline",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="each method trains with each"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="runs at a time; None: one per CPU core, or 1 on a GPU. Each needs its own memory",
    )


def _add_threads(parser: argparse.ArgumentParser, default: int | None, text: str) -> None:
    parser.add_argument("--threads", type=int, default=default, help=text)


def _add_folder(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--out", type=Path, default=Path(default), help="folder of the results")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue with what is in --out")
    either.add_argument("--overwrite", action="store_true", help="replace the runs in --out")


def _guarded(command: Command) -> Command:
    """`command` with the user's mistakes as a message instead of a traceback."""

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


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the parsed options give; a field without an option has its default."""
    given = vars(args)
    return Settings(**{name: given[name] for name in FIELDS if name in given})


def _train(args: argparse.Namespace) -> int:
    from .training.train import train

    run = train(settings_of(args), args.out, resume=args.resume, overwrite=args.overwrite)
    print(ap_table(run.ap))
    print(f"{args.out / 'checkpoint.pt'}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from .data.splits import open_split
    from .device import pick_device
    from .evaluation.evaluate import average_precision, detect
    from .training.checkpoint import load_checkpoint
    from .training.model import trained_model

    path = Path(args.checkpoint)
    state = load_checkpoint(path)
    settings = Settings.from_dict(state["settings"])
    if args.data is not None:
        settings = settings.change(data=args.data, labels=args.labels)
    device = pick_device(args.device)
    data = open_split(settings, None if args.split == "all" else args.split)
    model = trained_model(state, data.classes, path).to(device)
    found = detect(model, data, device, args.batch_size, progress=True)
    print(ap_table(average_precision(data, found), data.conditions))
    return 0


def _compare(args: argparse.Namespace) -> int:
    outcome = _compared(args, settings_of(args), args.resume)
    print(f"{outcome.answer}\nreport: {outcome.report}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    settings = DEMO.change(epochs=args.epochs, device=args.device)
    outcome = _compared(args, settings, resume=not args.overwrite)  # a second call continues
    print(
        f"\n{outcome.answer}\n\n"
        f"report:  {outcome.report}\n"
        "next:    python -m ragrad_ext compare --data DIR --seeds 0 1 2\n"
        "         with your own pairs: DIR/visible, DIR/infrared, DIR/labels, DIR/classes.txt"
    )
    return 0


def _compared(args: argparse.Namespace, settings: Settings, resume: bool) -> Comparison:
    from .compare import compare

    return compare(
        settings,
        args.out,
        methods=args.methods,
        seeds=args.seeds,
        jobs=args.jobs,
        threads=args.threads,
        resume=resume,
        overwrite=args.overwrite,
        command=shlex.join(["python", "-m", "ragrad_ext", *sys.argv[1:]]),
    )


def ap_table(ap: Mapping[str, Mapping[str, float]], conditions: Sequence[str] = ()) -> str:
    """AP, AP50 and AP75 in percent, a line for each condition, with its number of images."""
    lines = [f"{'':12}{'images':>8}{'AP':>8}{'AP50':>8}{'AP75':>8}"]
    for condition, values in ap.items():
        images = len(conditions) if condition == "overall" else conditions.count(condition)
        numbers = "".join(f"{100 * values[metric]:8.1f}" for metric in ("AP", "AP50", "AP75"))
        lines.append(f"{condition:12}{images or '':>8}{numbers}")
    return "\n".join(lines)
