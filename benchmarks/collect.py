"""Keep what `ragrad_ext compare` found: FOLDER/results.json becomes benchmarks/results/FOLDER.json.

    python -m benchmarks.collect runs/msrs runs/msrs_paper

All records are checked before the first one is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from .tables import RESULTS

KEYS = {"command", "settings", "versions", "machine", "runs"}


def collect(folders: list[Path], to: Path) -> list[Path]:
    """Copy the results of each folder byte for byte, and return the paths written.

    Raises:
        ValueError: a folder holds no results, results without runs, or has another's name.
    """
    records = {to / f"{folder.resolve().name}.json": checked(folder) for folder in folders}
    if len(records) < len(folders):
        raise ValueError(f"two folders of one name: {', '.join(map(str, folders))}; rename one")
    to.mkdir(parents=True, exist_ok=True)
    for path, text in records.items():
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        os.replace(part, path)
    return [*records]


def checked(folder: Path) -> str:
    """The text of a folder's results, if it is the record of a finished comparison."""
    path = folder / "results.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: finish `ragrad_ext compare ... --out {folder}` first")
    text = path.read_text()
    record = json.loads(text)
    if missing := KEYS - set(record):
        raise ValueError(
            f"{path} lacks {', '.join(sorted(missing))}; `ragrad_ext compare` writes it"
        )
    if not record["runs"]:
        raise ValueError(f"{path} has no runs; give `ragrad_ext compare` methods and seeds")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="what --out of compare named")
    parser.add_argument("--to", type=Path, default=RESULTS, help="where the results are kept")
    args = parser.parse_args()
    try:
        written = collect(args.folders, args.to)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
