"""How windows are worked through: portions, memory, sums."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.planted import BUILDERS, agree, built, rows_of, window_rows
from tests.tiny import grouped_batch, tiny_batch, tiny_model
from tsprune.amounts import byte_count
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.scores import ablation, fisher, hybrid, taylor, wanda
from tsprune.scores._memory import peak_bytes, windows_within, within_memory
from tsprune.scores._taps import chosen_groups, frozen, gate_gradients
from tsprune.scores._work import Dealt, Totals, combined, count_windows, over_windows, process, split_windows
from tsprune.settings import PruneSettings

KINDS = ("head", "ffn_channel")


def numbered(ids: list[int]) -> Batch:
    """Rows whose context tells which they are."""
    rows = torch.arange(len(ids)).float()[:, None].expand(-1, 4)
    return Batch(rows, rows + 100, torch.tensor(ids), None, torch.ones(len(ids), dtype=torch.bool))


# ---- splitting


@given(ids=st.lists(st.integers(-3, 3), min_size=1, max_size=12), size=st.integers(1, 9))
def test_when_a_batch_is_split_then_windows_stay_whole_and_in_order(ids: list[int], size: int) -> None:
    batch = numbered(ids)
    parts = split_windows(batch, size)
    of_part = [list(dict.fromkeys(part.group_ids.tolist())) for part in parts if part.group_ids is not None]
    assert [i for part in of_part for i in part] == list(dict.fromkeys(ids))
    assert all(len(part) == size for part in of_part[:-1])
    assert 1 <= len(of_part[-1]) <= size
    assert [count_windows(part) for part in parts] == [len(part) for part in of_part]
    for part in parts:
        assert part.target is not None
        assert part.group_ids is not None
        rows = part.context[:, 0].long()
        assert torch.equal(rows, rows.sort().values)
        assert torch.equal(part.group_ids, torch.tensor(ids)[rows])
        assert torch.equal(part.target, part.context + 100)


def test_when_rows_have_no_groups_then_each_is_a_window() -> None:
    batch = tiny_batch(5)
    assert [part.rows for part in split_windows(batch, 2)] == [2, 2, 1]
    assert split_windows(batch, 5)[0] is batch


def test_when_portions_of_nothing_are_asked_for_then_that_is_refused() -> None:
    with pytest.raises(TspruneError, match="portions of 0 windows"):
        split_windows(tiny_batch(2), 0)


@pytest.mark.parametrize("case", BUILDERS)
def test_when_portions_are_put_together_then_per_window_losses_are_those_of_the_batch(case: str) -> None:
    model, batch = built(case)
    with torch.no_grad():
        whole = model.loss(batch)
        parts = torch.cat([model.loss(part) for part in split_windows(batch, 1)])
    assert agree(parts, whole, 1e-12)


# ---- out of memory


class Short:
    """A step that runs out of memory above so many windows."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.tried = most, error, list[int]()

    def __call__(self, portion: Batch) -> list[int]:
        self.tried.append(count_windows(portion))
        if self.tried[-1] > self.most:
            raise self.error
        return portion.context[:, 0].long().tolist()


FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.fixture(scope="module")
def model() -> Forecaster:
    return tiny_model("chronos2")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), FULL])
@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_when_memory_runs_out_then_portions_are_halved_and_every_window_is_done_once(
    model: Forecaster, most: int, error: Exception
) -> None:
    ids = [3, 1, 3, 2, 9, 1, 5, 4, 6, 7]
    step = Short(most, error)
    batches = [numbered(ids), numbered(ids)]
    found = list(over_windows(model, batches, step))
    assert sorted(row for rows in found for row in rows) == sorted([*range(10), *range(10)])
    assert all(len({ids[row] for row in rows}) <= most for rows in found)
    failures = [count for count in step.tried if count > most]
    # What did not fit once is not tried again with the next batch.
    assert failures == sorted(set(failures), reverse=True)


def test_when_memory_runs_out_while_scoring_then_the_scores_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case_model, batch = built("chronos2 groups")
    expected = {m: m.scores(case_model, [batch], kinds=KINDS) for m in (fisher, taylor, wanda, hybrid)}
    loss = type(case_model).loss

    def greedy(self: Forecaster, given: Batch) -> Tensor:
        if count_windows(given) > 1:
            raise FULL
        return loss(self, given)

    monkeypatch.setattr(type(case_model), "loss", greedy)
    for module, scores in expected.items():
        for name, values in module.scores(case_model, [batch], kinds=KINDS).items():
            assert agree(values, scores[name], 1e-9), name
    assert all(gate.tap is None for group in case_model.unit_groups().values() for gate in group.gates)


def test_when_one_window_does_not_fit_then_the_message_says_what_to_do(model: Forecaster) -> None:
    with pytest.raises(TspruneError, match="one window alone does not fit.*--max-memory"):
        list(over_windows(model, [tiny_batch(4)], Short(0, FULL)))


def test_when_a_step_fails_otherwise_then_its_error_passes_through(model: Forecaster) -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(over_windows(model, [tiny_batch(4)], Short(0, RuntimeError("shapes do not fit"))))


# ---- sums


def test_when_values_are_added_in_any_precision_then_sums_are_float64_on_the_cpu() -> None:
    totals = Totals()
    for _ in range(3):
        totals.add("a", torch.tensor([0.5, 1.0], dtype=torch.bfloat16))
        totals.add("b", torch.ones(2, 2, dtype=torch.float32) / 3)
        totals.count(2)
    sums, windows = totals.result()
    assert windows == 6
    assert sums["a"].dtype == torch.float64
    assert sums["a"].tolist() == [1.5, 3.0]
    assert torch.equal(totals.means()["b"], (torch.ones(2, 2) / 3).double() * 3 / 6)


def test_when_totals_are_combined_then_sums_and_windows_add_up_and_the_parts_stay() -> None:
    parts = []
    for number in range(3):
        part = Totals()
        part.add("a", torch.tensor([float(number)]))
        part.count(number)
        parts.append(part)
    parts[1].add("only", torch.ones(1))
    sums, windows = combined(parts).result()
    assert (windows, sums["a"].item(), sums["only"].item()) == (3, 3.0, 1.0)
    assert [part.sums["a"].item() for part in parts] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("module", [fisher, taylor, wanda, hybrid, ablation])
def test_when_there_is_no_window_then_scores_say_so(model: Forecaster, module: Any) -> None:
    with pytest.raises(TspruneError, match="at least one batch"):
        module.scores(model, [])


# ---- several processes, as far as one can tell from inside one


def test_when_there_is_no_launcher_then_this_is_the_only_process() -> None:
    assert process() == (0, 1)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("first", [0, 1, 5])
def test_when_processes_share_batches_then_each_batch_is_done_by_one(
    model: Forecaster, monkeypatch: pytest.MonkeyPatch, count: int, first: int
) -> None:
    batches = Dealt([numbered([number]) for number in range(5)], first)
    ids = [[int(i) for i in batch.group_ids] for batch in batches if batch.group_ids is not None]
    done = []
    for rank in range(count):
        monkeypatch.setattr("tsprune.scores._work.process", lambda rank=rank: (rank, count))
        done.append([int(p.group_ids[0]) for p in over_windows(model, batches, lambda portion: portion)])
    assert sorted(i for own in done for i in own) == sorted(i for own in ids for i in own)
    assert max(map(len, done)) - min(map(len, done)) <= 1
    assert 0 in done[first % count]


# ---- memory


def test_when_sizes_are_known_then_the_peak_is_what_is_held_at_once() -> None:
    def work() -> Tensor:
        a = torch.ones(1000, dtype=torch.float64)  # 8000
        b = a.view(10, 100) + 1  # 16000
        del a
        c = b[:5].clone()  # 12000
        d = torch.cat([b, c])  # 24000
        del b, c
        return d + 1  # 24000

    assert peak_bytes(work) == 24_000


def test_when_autograd_keeps_a_tensor_then_it_counts_until_the_backward_pass() -> None:
    weight = torch.ones(500, 1, requires_grad=True)

    def forward() -> Tensor:
        x = torch.ones(100, 500)  # 200 kB, kept for the gradient of the weight
        return (x @ weight).sum()

    kept = peak_bytes(lambda: forward())
    assert 200_000 <= kept < 202_000
    held: list[Tensor] = []
    with torch.no_grad():
        assert 200_000 <= peak_bytes(lambda: held.append(forward())) < 202_000


@pytest.mark.parametrize("family", ["chronos2", "chronos_bolt"])
def test_when_units_are_scored_then_the_peak_is_little_above_a_forward_pass_with_its_graph(family: str) -> None:
    model, batch = tiny_model(family, d_model=48, d_ff=96), tiny_batch(32, length=64)
    groups = chosen_groups(model, KINDS)
    model.requires_grad_(True)
    forward = peak_bytes(lambda: model.loss(batch).sum())
    assert peak_bytes(lambda: gate_gradients(model, batch, groups)) <= 1.2 * forward

    def plain() -> None:
        with frozen(model), torch.no_grad():
            model.loss(batch)

    for module in (wanda, ablation):
        one = {"kinds": ("head",)}
        assert peak_bytes(lambda module=module, one=one: module.scores(model, [batch], **one)) <= 1.2 * peak_bytes(
            plain
        )


@pytest.mark.parametrize("needs", ["forward", "backward"])
@pytest.mark.parametrize("batch", [tiny_batch(40, length=64), grouped_batch()])
def test_when_memory_is_limited_then_portions_stay_within_it_and_use_it(needs: str, batch: Batch) -> None:
    model = tiny_model("chronos2")
    windows = count_windows(batch)

    def peak(portion: Batch) -> int:
        if needs == "backward":
            return peak_bytes(lambda: gate_gradients(model, portion, chosen_groups(model, KINDS)))
        with torch.no_grad():
            return peak_bytes(lambda: model.loss(portion))

    whole = peak(batch)
    for share in (0.75, 1.3):
        limit = int(share * whole)
        parts = within_memory(model, [batch], limit, needs=needs, kinds=KINDS)
        assert sum(count_windows(part) for part in parts) == windows
        assert max(peak(part) for part in parts) <= limit
        if windows > 10:
            assert len(parts) == (2 if share < 1 else 1)


def test_when_a_score_needs_weights_only_then_nothing_is_split() -> None:
    batch = tiny_batch(4)
    assert within_memory(tiny_model("chronos2"), [batch], 1, needs="weights", kinds=KINDS) == [batch]


def test_when_the_limit_is_below_one_window_then_the_message_names_both() -> None:
    with pytest.raises(TspruneError, match=r"--max-memory 1,000 bytes is too little.*takes [\d,]+; give more"):
        within_memory(tiny_model("chronos2"), [tiny_batch(4)], 1000, needs="forward", kinds=KINDS)


@settings(max_examples=30, deadline=None)
@given(fixed=st.integers(0, 50), each=st.integers(1, 50), room=st.integers(0, 400))
def test_when_memory_grows_by_window_then_as_many_fit_as_there_is_room(fixed: int, each: int, room: int) -> None:
    def work(portion: Batch) -> list[Tensor]:
        return [torch.ones(fixed * 8, dtype=torch.float64), torch.ones(portion.rows * each * 8, dtype=torch.float64)]

    limit = 64 * (fixed + each + room)
    assert windows_within(work, tiny_batch(4), limit) == (64 * (each + room)) // (64 * each)


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("64B", 64), ("10KB", 10_000), ("1TiB", 2**40)],
)
def test_when_memory_is_written_as_people_do_then_it_is_read(text: str, count: int) -> None:
    assert byte_count(text, "--max-memory") == count


@pytest.mark.parametrize("text", ["2", "GB", "-1GB", "2XB", "0MB", "1e3MB", "2 G B", "iB"])
def test_when_an_amount_of_memory_is_none_then_the_flag_and_an_example_are_named(text: str) -> None:
    with pytest.raises(TspruneError, match=r"--max-memory .*such as 500MB or 2GB"):
        PruneSettings(max_memory=text)


def test_when_rows_are_picked_then_absent_fields_stay_absent() -> None:
    batch = tiny_batch(4)
    part = split_windows(batch, 2)[1]
    expected = rows_of(batch, [row for rows in window_rows(batch)[2:] for row in rows])
    for field in fields(Batch):
        mine, other = getattr(part, field.name), getattr(expected, field.name)
        assert (mine is None and other is None) or torch.equal(mine.nan_to_num(7.0), other.nan_to_num(7.0))
