"""What only the Chronos families promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.tiny import grouped_batch, tiny_batch, tiny_model
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError


def test_chronos_bolt_refuses_covariates_by_its_name() -> None:
    model, batch = tiny_model("chronos_bolt"), grouped_batch()
    for refused in (replace(batch, is_target=None), replace(batch, future=None)):
        with pytest.raises(TspruneError, match="chronos_bolt cannot use covariates"):
            model.forecast(refused, 8)
        with pytest.raises(TspruneError, match="chronos_bolt cannot use covariates"):
            model.loss(refused)


def test_chronos_2_mixes_the_rows_of_a_group_and_no_others() -> None:
    model, batch = tiny_model("chronos2"), tiny_batch(4)
    grouped = replace(batch, group_ids=torch.tensor([2, 2, 5, 9]))
    alone, mixed = model.forecast(batch, 16), model.forecast(grouped, 16)
    assert not torch.allclose(alone[:2], mixed[:2])
    torch.testing.assert_close(alone[2:], mixed[2:])
    order = torch.tensor([3, 1, 2, 0])
    shuffled = Batch(batch.context[order], group_ids=torch.tensor([9, 2, 5, 2]))
    torch.testing.assert_close(model.forecast(shuffled, 40), model.forecast(grouped, 40)[order], rtol=1e-4, atol=1e-3)


def test_chronos_2_known_future_of_a_covariate_changes_the_other_rows_of_its_group_only() -> None:
    model = tiny_model("chronos2")
    batch = replace(grouped_batch(), target=None)
    assert batch.future is not None
    plain = model.forecast(batch, 16)
    other = model.forecast(replace(batch, future=batch.future + 3), 16)
    changed = (plain - other).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [True, True, False, True, False]
