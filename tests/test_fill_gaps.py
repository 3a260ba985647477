"""Gaps become straight lines, ends repeat the last value, beginnings stay padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tsprune.blocks.patching import fill_gaps

NAN = float("nan")
values = st.one_of(st.none(), st.floats(-1e6, 1e6))


def by_hand(row: list[float]) -> list[float]:
    """One row, step by step."""
    seen = [step for step, value in enumerate(row) if not np.isnan(value)]
    filled = list(row)
    for step in range(seen[0] if seen else len(row), len(row)):
        before = max(place for place in seen if place <= step)
        after = min((place for place in seen if place >= step), default=before)
        share = 0.0 if after == before else (step - before) / (after - before)
        filled[step] = row[before] + share * (row[after] - row[before])
    return filled


@given(st.integers(0, 24).flatmap(lambda length: st.lists(st.lists(values, min_size=length, max_size=length))))
def test_filling_equals_a_loop_over_steps(drawn: list[list[float | None]]) -> None:
    rows = [[NAN if value is None else value for value in row] for row in drawn]
    if not rows:
        return
    found = fill_gaps(torch.tensor(rows, dtype=torch.float64).view(len(rows), -1))
    expected = np.array([by_hand(row) for row in rows]).reshape(len(rows), -1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-9)


@given(st.lists(values, min_size=1, max_size=24))
def test_observed_values_and_a_filled_row_come_back_to_the_bit(drawn: list[float | None]) -> None:
    row = torch.tensor([[NAN if value is None else value for value in drawn]])
    once = fill_gaps(row)
    seen = ~torch.isnan(row)
    assert torch.equal(once[seen], row[seen])
    assert torch.equal(fill_gaps(once).nan_to_num(7.5), once.nan_to_num(7.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_kind_of_gap_in_every_type(dtype: torch.dtype) -> None:
    context = torch.tensor([[NAN, 2, NAN, NAN, NAN, 6, NAN, NAN], [NAN] * 8, [1.5] * 8], dtype=dtype)
    wanted = torch.tensor([[NAN, 2, 3, 4, 5, 6, 6, 6], [NAN] * 8, [1.5] * 8], dtype=dtype)
    found = fill_gaps(context)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_a_gap_in_a_constant_series_keeps_it_constant() -> None:
    context = torch.full((1, 3000), 0.1)
    context[:, 7:2990] = NAN
    assert torch.equal(fill_gaps(context), torch.full((1, 3000), 0.1))


def test_a_long_gap_in_half_precision_rises_as_evenly_as_the_type_allows() -> None:
    context = torch.full((1, 2001), NAN, dtype=torch.bfloat16)
    context[0, 0], context[0, -1] = 0, 1
    expected: Tensor = (torch.arange(2001) / 2000).to(torch.bfloat16)
    torch.testing.assert_close(fill_gaps(context)[0], expected, rtol=0, atol=0)


def test_further_axes_in_front_are_rows_too() -> None:
    context = torch.randn(2, 3, 9)
    context[0, 1, 3:6] = NAN
    assert torch.equal(fill_gaps(context), fill_gaps(context.flatten(0, 1)).view(2, 3, 9))
