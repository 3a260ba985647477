"""Several ablations in one pass equal one after the other, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.lens_fixture import counted
from tests.test_families import as_double, fitting_batch
from tests.tiny import ALL_FAMILIES, grouped_batch, tiny_batch, tiny_model, waves
from tests.toy import TOYS, case_of, toy, toy_batch
from tsprune.blocks.gate import Gate, OtherRows, Rows, mask_for
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.lens import _ablating as ablating
from tsprune.lens import _batched as batched
from tsprune.lens._together import Together
from tsprune.models._forecaster import Forecaster, Kept, window_index

MANY = 1 << 20
SMALL = tiny_model("chronos2", seed=4).double()
every_family = pytest.mark.parametrize("family", ALL_FAMILIES)


def one_of_each_kind(model: Forecaster) -> list[Kept]:
    """Nothing off, the last unit of a group of each kind off, and two groups at once."""
    by_kind = {group.kind: group for group in model.unit_groups().values()}
    single = [ablating.without(g, [g.units - 1]) for g in by_kind.values() if g.units > g.floor]
    return [{}, *single, {name: units for kept in single[:2] for name, units in kept.items()}]


def batch_for(model: Forecaster) -> Batch:
    return fitting_batch(model, seed=3) if model.window_rows == 1 else tiny_batch(4)


@every_family
def test_losses_and_forecasts_together_equal_those_one_by_one(family: str) -> None:
    model = tiny_model(family, seed=1).double()
    batches, several = [as_double(batch_for(model)), as_double(tiny_batch(1, seed=5))], one_of_each_kind(model)
    with counted(model) as calls:
        found = batched.losses_of(model, batches, several, tokens=MANY)
    assert calls["loss"] == len(batches), "the ablations did not share a pass"
    alone = torch.stack([ablating.losses(model, batches, kept) for kept in several])
    torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(alone[1:], alone[:1], rtol=1e-4), "nothing was switched off"
    forecasts = batched.medians_of(model, batches, several, tokens=MANY)
    wanted = torch.stack([ablating.medians(model, batches, kept) for kept in several])
    torch.testing.assert_close(forecasts, wanted, rtol=1e-9, atol=1e-9)
    assert all(gate.mask is None and gate.fill is None for gate in model.modules() if isinstance(gate, Gate))


@pytest.mark.parametrize("case", TOYS)
def test_the_same_for_shared_keys_uneven_heads_and_experts_that_leave_the_router(case: str) -> None:
    model, batch = case_of(case)
    several = one_of_each_kind(model)
    found = batched.losses_of(model, [batch], several, tokens=MANY)
    alone = torch.stack([ablating.losses(model, [batch], kept) for kept in several])
    torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-12)
    if case == "experts":
        assert any(name.endswith("/expert") for kept in several for name in kept)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data(), tokens=st.integers(1, 400), number=st.integers(1, 7))
def test_any_ablations_in_passes_of_any_size_equal_those_one_by_one(
    data: st.DataObject, tokens: int, number: int
) -> None:
    model, batches = SMALL, [as_double(grouped_batch()), as_double(tiny_batch(3, length=20))]
    groups = [group for group in model.unit_groups().values() if group.kind in ("head", "ffn_channel", "attention")]
    several: list[Kept] = [
        {
            group.name: sorted(data.draw(st.sets(st.integers(0, group.units - 1))))
            for group in data.draw(st.lists(st.sampled_from(groups), max_size=3, unique=True))
        }
        for _ in range(number)
    ]
    found = batched.losses_of(model, batches, several, tokens=tokens)
    alone = torch.stack([ablating.losses(model, batches, kept) for kept in several])
    torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-9)


@every_family
def test_in_single_precision_they_differ_by_rounding_alone(family: str) -> None:
    model = tiny_model(family, seed=1)
    batch, several = batch_for(model), one_of_each_kind(model)
    found = batched.losses_of(model, [batch], several, tokens=MANY)
    torch.testing.assert_close(
        found, torch.stack([ablating.losses(model, [batch], kept) for kept in several]), rtol=2e-5, atol=2e-5
    )


def test_known_futures_and_groups_with_any_ids_stay_with_their_copy() -> None:
    batch = grouped_batch()
    twice = batch.repeated(3)
    assert window_index(twice).tolist() == [0, 0, 1, 0, 1, 2, 2, 3, 2, 3, 4, 4, 5, 4, 5]
    assert twice.future is not None and batch.future is not None and twice.is_target is not None
    torch.testing.assert_close(twice.future[5:10], batch.future, equal_nan=True)
    torch.testing.assert_close(twice.context[10:], batch.context, equal_nan=True)
    assert tiny_batch(2).repeated(2).group_ids is None and batch.repeated(1).rows == batch.rows


def test_what_stands_in_for_units_is_the_same_in_all_of_them() -> None:
    model = tiny_model("chronos2", seed=2).double()
    batch = as_double(grouped_batch())
    groups = ablating.groups_of(model, "head", "ffn")
    means = ablating.dataset_means(model, [batch], groups.values())
    several = [ablating.without(group, [0]) for group in groups.values()]
    found = batched.losses_of(model, [batch], several, means, tokens=MANY)
    alone = torch.stack([ablating.losses(model, [batch], kept, means) for kept in several])
    torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found, batched.losses_of(model, [batch], several, tokens=MANY))


def test_what_was_off_stays_off_in_ablations_that_do_not_name_it() -> None:
    model = tiny_model("chronos_bolt", seed=2).double()
    batch, groups = as_double(tiny_batch(3)), list(ablating.groups_of(model, "head").values())
    several: list[Kept] = [{}, ablating.without(groups[1], [0]), ablating.without(groups[0], [1])]
    with model.masked(ablating.without(groups[0], [0])):
        found = batched.losses_of(model, [batch], several, tokens=MANY)
        alone = torch.stack([ablating.losses(model, [batch], kept) for kept in several])
    torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)


# ---- gates


def test_a_mask_by_rows_is_that_of_each_row_whatever_the_shape() -> None:
    mask, x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.randn(3, 5, 4, 6)
    gate, uneven = Gate(2, 3), Gate(2, owner=torch.tensor([0, 1, 1, 0, 1, 1]))
    for one in (gate, uneven):
        one.fill = torch.arange(6.0)
        one.mask = mask
        found = one(x)
        for row in range(3):
            one.mask = mask[row]
            assert torch.equal(found[row], one(x[row]))
    picked = torch.tensor([2, 0, 1, 1])
    gate.mask = mask
    tokens = gate(x[picked, 0, 0], Rows(picked, 3))
    assert torch.equal(tokens, gate(x)[picked, 0, 0])
    with pytest.raises(OtherRows):
        gate(x[:2])
    with pytest.raises(OtherRows):
        gate(x[picked, 0, 0], Rows(picked, 4))
    assert torch.equal(mask_for(mask[0], x), mask[0])


# ---- how many share a pass


def test_as_many_share_a_pass_as_there_is_room_for_and_none_where_windows_fill_it() -> None:
    model = tiny_model("chronos2")  # patches of 8 steps
    assert Together(model, tokens=120).at_once(Batch(waves(4, 40), waves(4, 16))) == 6
    assert Together(model, tokens=19).at_once(Batch(waves(4, 40), waves(4, 16))) == 1
    assert Together(model).at_once(Batch(waves(1024, 40))) == 1
    sizes = sizes_of(model, tiny_batch(4, length=40), tokens=100, count=6)
    assert sizes == [12, 12], "passes of equal size"


def sizes_of(model: Forecaster, batch: Batch, tokens: int, count: int) -> list[int]:
    found: list[int] = []

    def work(portion: Batch) -> Tensor:
        found.append(portion.rows)
        return portion.context[:, :1]

    values = Together(model, tokens).values(batch, [{}] * count, work)
    assert values.shape == (count, batch.rows, 1)
    return found


def test_a_roll_out_along_paths_is_made_one_by_one_and_right() -> None:
    model = tiny_model("chronos2", seed=1).double()
    whole = waves(3, 44 + 40).double()
    batch = Batch(whole[:, :44], whole[:, 44:])  # beyond the 16 steps of one pass
    several = one_of_each_kind(model)[:3]
    found = batched.medians_of(model, [batch], several, tokens=MANY)
    wanted = torch.stack([ablating.medians(model, [batch], kept) for kept in several])
    assert torch.equal(found, wanted)


def test_where_memory_runs_out_fewer_share_a_pass() -> None:
    model, batch, limit = tiny_model("chronos_bolt").double(), as_double(tiny_batch(2)), 6

    @contextmanager
    def little_memory() -> Iterator[list[int]]:
        seen: list[int] = []
        real = type(model).loss

        def loss(self: Forecaster, portion: Batch) -> Tensor:
            seen.append(portion.rows)
            if portion.rows > limit:
                raise torch.OutOfMemoryError("no room")
            return real(self, portion)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "loss", loss)
            yield seen

    several = one_of_each_kind(model)
    alone = torch.stack([ablating.losses(model, [batch], kept) for kept in several])
    with little_memory() as seen:
        found = batched.losses_of(model, [batch], several, tokens=MANY)
    torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)
    assert seen[0] > limit and max(seen[-2:]) in (4, 6)


def test_other_errors_are_not_swallowed() -> None:
    def work(portion: Batch) -> Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Together(tiny_model("chronos2"), MANY).values(tiny_batch(2), [{}, {}], work)
    with pytest.raises(TspruneError, match="no unit group 'x'"):
        batched.losses_of(tiny_model("chronos2"), [tiny_batch(2)], [{"x": []}])
    with pytest.raises(TspruneError, match="at least one batch"):
        batched.losses_of(tiny_model("chronos2"), [], [{}])


def test_what_does_nothing_has_a_growth_of_exactly_one() -> None:
    model = toy("both sorts of networks")
    batch = toy_batch()
    group = next(iter(ablating.groups_of(model, "head").values()))
    with torch.no_grad():
        model.get_submodule(group.path).o.weight.zero_()  # type: ignore[union-attr, operator]
    intact = float(ablating.losses(model, [batch]).mean())
    several = [ablating.without(group, [unit]) for unit in range(group.units)]
    assert batched.growths_of(model, [batch], several, intact) == [1.0] * group.units
    assert batched.growths_of(model, [batch], [], intact) == []
