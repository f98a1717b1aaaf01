"""The commands as a user types them: defaults, tables, mistakes, Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ragrad_ext.detection import cli
from ragrad_ext.detection.settings import Settings

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
TINY = ["--scenes", "4", "--width", "96", "--height", "96", "--epochs", "1", "--device", "cpu"]


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_commands(parser.add_subparsers(required=True))
    return parser.parse_args(words)


def call(*words: str) -> int:
    args = parse(*words)
    return int(args.run(args))


def test_options_are_the_settings() -> None:
    assert cli.settings_of(parse("train")) == Settings()
    given = parse("train", "--no-augment", "--lr", "0.5", "--batch-size", "2", "--scope", "layer")
    assert cli.settings_of(given) == Settings(augment=False, lr=0.5, batch_size=2, scope="layer")
    assert cli.settings_of(parse("compare", "--seeds", "3", "4")) == Settings()


@pytest.mark.parametrize("command", ["train", "evaluate", "compare", "demo"])
def test_help_gives_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(command, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "(default: auto)" in text
    assert "SUPPRESS" not in text


def test_train_then_evaluate_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    before = torch.get_num_threads()
    try:
        assert call("train", *TINY, "--threads", "1", "--out", str(out)) == 0
    finally:
        torch.set_num_threads(before)
    trained = capsys.readouterr().out.splitlines()
    assert trained[-1] == str(out / "checkpoint.pt")
    assert call("evaluate", "--checkpoint", trained[-1], "--device", "cpu") == 0
    evaluated = capsys.readouterr().out.splitlines()
    assert evaluated[0].split() == ["images", "AP", "AP50", "AP75"]
    assert [line.split()[0] for line in evaluated[1:]] == ["overall", "day", "night"]
    assert evaluated[1].split()[1] == "2"
    assert [line.split()[-3:] for line in evaluated] == [line.split()[-3:] for line in trained[:-1]]
    whole = ("evaluate", "--checkpoint", trained[-1], "--device", "cpu", "--split", "all")
    assert call(*whole) == 2
    assert "scenes have the splits train and val" in capsys.readouterr().err


def test_mistakes_are_one_clean_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    for words, message in (
        (["train", "--data", str(tmp_path / "none"), "--out", out], "error: no folder"),
        (["train", "--epochs", "0", "--out", out], "error: epochs must be a whole number"),
        (["train", "--threads", "0"], "error: --threads must be 1 or more, got 0"),
        (["train", "--device", "abc", "--out", out], "error: device 'abc' cannot be used"),
        (["compare", "--seeds", "1", "1", "--out", out], "error: seeds must be given, each once"),
        (["evaluate", "--checkpoint", out], "error: no checkpoint at"),
    ):
        assert call(*words) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(message)
        assert "Traceback" not in captured.err
    assert not Path(out).exists()


def test_the_table_by_hand() -> None:
    ap = {"overall": {"AP": 0.5, "AP50": 1.0, "AP75": 0.25}, "fog": dict.fromkeys(METRICS, 0.0)}
    assert cli.ap_table(ap, ["fog", "day", "fog"]).splitlines() == [
        "              images      AP    AP50    AP75",
        "overall            3    50.0   100.0    25.0",
        "fog                2     0.0     0.0     0.0",
    ]


METRICS = ("AP", "AP50", "AP75")


@pytest.mark.slow
def test_without_the_extra_commands_say_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from ragrad_ext.__main__ import main\n"
        f"sys.exit(main(['train', '--out', {str(tmp_path / 'run')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: torchvision is not installed; run pip install")
    assert '"ragrad_ext[detection]"' in done.stderr


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "ragrad_ext", "train", *TINY, "--threads", "1"]
    words += ["--epochs", "500", "--out", str(tmp_path)]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # a background job may have inherited an ignored Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoint.pt").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command with --resume continues from there" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "checkpoint.pt").is_file()
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.slow
def test_demo_writes_a_report_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "DEMO", cli.DEMO.change(scenes=8))
    words = ("demo", "--seeds", "0", "--epochs", "1", "--jobs", "2", "--out", str(tmp_path))
    assert call(*words) == 0
    shown = capsys.readouterr().out
    assert "RaGrad differs by" in shown
    assert "one seed is not enough" in shown
    assert f"report:  {tmp_path / 'report.html'}\n" in shown
    assert "next:    python -m ragrad_ext compare --data DIR --seeds 0 1 2\n" in shown
    assert (tmp_path / "report.html").stat().st_size > 10_000
    again = (tmp_path / "none-seed0" / "metrics.json").stat().st_mtime_ns
    assert call(*words) == 0
    assert (tmp_path / "none-seed0" / "metrics.json").stat().st_mtime_ns == again
