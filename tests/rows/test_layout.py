"""Rows of layers, by hand."""

from __future__ import annotations

import torch

from ragrad_ext.rules import Layout

LAYOUT = Layout.of([2, 0, 3])
CPU = torch.device("cpu")


def test_offsets_and_slices() -> None:
    assert LAYOUT.offsets == (0, 2, 2, 5)
    assert LAYOUT.rows == 5
    assert LAYOUT.slices() == [slice(0, 2), slice(2, 2), slice(2, 5)]


def test_the_place_of_a_row() -> None:
    assert [LAYOUT.place(row) for row in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]


def test_sums_by_layer_and_back() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert LAYOUT.sum_by_layer(x).tolist() == [3.0, 0.0, 12.0]
    assert LAYOUT.count_by_layer(x > 1.5).tolist() == [1, 0, 3]
    assert LAYOUT.to_rows(torch.tensor([7.0, 8.0, 9.0])).tolist() == [7.0, 7.0, 9.0, 9.0, 9.0]
    assert LAYOUT.layer_of_rows(CPU).tolist() == [0, 0, 2, 2, 2]


def test_no_layers() -> None:
    empty = Layout.of([])
    assert empty.rows == 0
    assert empty.sum_by_layer(torch.zeros(0)).shape == (0,)
    assert empty.to_rows(torch.zeros(0)).shape == (0,)
