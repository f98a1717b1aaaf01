"""``python -m ragrad_ext``: the doctor, and the laboratory of `ragrad_ext.detection`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import doctor
from .detection.cli import add_commands
from .version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ragrad_ext", description="RaGrad: what works here, and training with and without it."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("doctor", help="versions, devices, and which backends work here")
    check.set_defaults(run=_doctor)
    add_commands(commands)
    args = parser.parse_args(argv)
    return int(args.run(args))


def _doctor(args: argparse.Namespace) -> int:
    print(doctor.report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
