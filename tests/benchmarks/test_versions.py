"""The tables of tested versions say what the matrix wrote."""

from __future__ import annotations

from typing import Any

from benchmarks import version_tables


def row(torch: str, triton: str, skipped: dict[str, int]) -> dict[str, Any]:
    tests = {"core": {"passed": 412, "skipped": {}}, "native": {"passed": 7, "skipped": skipped}}
    return {"torch": torch, "triton": triton, "numpy": "2.4.1", "python": "3.11.7",
            "date": "2026-11-25", "tests": tests}  # fmt: skip


ROWS = [row("2.10.0", "3.6.0", {"no GPU": 2, "no nvcc": 1}), row("2.15.0", "3.9.0", {})]


def test_every_kind_of_tests_has_a_column() -> None:
    assert version_tables.tests(ROWS).splitlines() == [
        "| torch | triton | numpy | Python | core | native |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 2.10.0 | 3.6.0 | 2.4.1 | 3.11.7 | 412 passed | 7 passed, 3 skipped |",
        "| 2.15.0 | 3.9.0 | 2.4.1 | 3.11.7 | 412 passed | 7 passed |",
    ]


def test_one_sentence_names_them_all() -> None:
    assert version_tables.sentence(ROWS) == (
        "`make matrix` tested one wheel on Python 3.11.7 beside torch 2.10.0 (triton 3.6.0, "
        "numpy 2.4.1) and torch 2.15.0 (triton 3.9.0, numpy 2.4.1), 2026-11-25."
    )
