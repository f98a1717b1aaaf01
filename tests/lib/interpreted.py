"""Tests marked `interpreted` run in one process more, started with TRITON_INTERPRET=1.

Triton reads that variable when a kernel is defined, its own included, so it must be set before
Triton is imported; and most tests are about an installation without it. The other process runs
beside this one, and every test is reported here as if it had run here. To run one of them under a
debugger: TRITON_INTERPRET=1 python -m pytest ...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import Future
from threading import Thread
from typing import Any, NamedTuple, TextIO

import pytest


class Outcome(NamedTuple):
    """Of one test: passed, skipped or failed, and why."""

    outcome: str
    why: str


class Reporter:
    """In the other process: writes a line of JSON for every test that ended."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.found = stream, Outcome("passed", "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            texts = [self.found.why, report.longreprtext, *(text for _, text in report.sections)]
            self.found = Outcome("failed", "\n".join(t for t in texts if t))
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.found = Outcome("skipped", report.longrepr[2].removeprefix("Skipped: "))
        if report.when == "teardown":
            print(json.dumps([report.nodeid, *self.found]), file=self.stream, flush=True)
            self.found = Outcome("passed", "")


class Process:
    """The other process, and what it found so far."""

    def __init__(self, tests: list[str], root: str) -> None:
        self.outcomes: dict[str, Future[Outcome]] = {test: Future() for test in tests}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, it lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, *tests],
            cwd=root,
            env=os.environ | {"TRITON_INTERPRET": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            test, *found = json.loads(line)
            self.outcomes[test].set_result(Outcome(*found))
        code = self.process.wait()
        self.log.seek(0)
        why = f"the process with TRITON_INTERPRET=1 ended without it, with exit status {code}:\n"
        lost = Outcome("failed", why + self.log.read())
        for future in self.outcomes.values():
            if not future.done():
                future.set_result(lost)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class FailedThere(Exception):
    """A test failed in the other process; it says how."""


class Elsewhere(pytest.Item):
    """A test of this process that waits for its outcome in the other one."""

    def __init__(self, *, there: Process, original: pytest.Item, **rest: Any) -> None:
        super().__init__(**rest)
        self.there, self.original = there, original

    def runtest(self) -> None:
        outcome, why = self.there.outcomes[self.nodeid].result()
        if outcome == "skipped":
            pytest.skip(why)
        if outcome == "failed":
            raise FailedThere(why)

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, FailedThere):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> Any:
        return self.original.reportinfo()


def pytest_collection_finish(session: pytest.Session) -> None:
    """A hook of tests/conftest.py: whatever was chosen, those that are marked run elsewhere."""
    marked = [item for item in session.items if item.get_closest_marker("interpreted")]
    if not marked or os.environ.get("TRITON_INTERPRET") == "1" or session.config.option.collectonly:
        return
    there = Process([item.nodeid for item in marked], str(session.config.rootpath))
    session.config.add_cleanup(there.stop)
    for n, item in enumerate(session.items):
        if item in marked:
            session.items[n] = Elsewhere.from_parent(
                item.parent, name=item.name, there=there, original=item
            )


def main(tests: list[str]) -> int:
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what pytest itself says
    return int(pytest.main([*tests, "-p", "no:cacheprovider"], plugins=[Reporter(results)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
