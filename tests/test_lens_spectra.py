"""Spectra of weights and of attention, entropy of attention, ranks of head outputs: against loops and planted cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import Tensor

from tests.looking import look, measure
from tests.test_stable_rank import rows_of_head
from tests.tiny import tiny_batch, tiny_model
from tests.toy import PATCH, WIDTH, case_of, cast, rows_of, toy, toy_batch, windows_of
from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.lens import _maps, attention_spectra
from tsprune.lens._maps import AttentionMap, in_portions, watching
from tsprune.lens.attention_entropy import entropies
from tsprune.lens.attention_spectra import rank_sums, spread_windows
from tsprune.lens.head_rank import entropy
from tsprune.lens.weight_spectra import spectrum
from tsprune.models._forecaster import Forecaster
from tsprune.scores._work import count_windows

Maps = list[tuple[str, AttentionMap]]


def attention_of(weights: Tensor, live: Tensor | None = None, counted: Tensor | None = None) -> AttentionMap:
    """A map of weights `[B, H, T, S]` that sees everything."""
    rows, _, queries, keys = weights.shape
    everything = torch.ones(rows, queries, keys, dtype=torch.bool)
    live = everything if live is None else live
    return AttentionMap(weights, live, live.any(-1) if counted is None else counted, False)


def maps_of(model: Forecaster, batch: Batch) -> Maps:
    """Every map of one forward pass for each window."""
    found: Maps = []
    for window in windows_of(batch):
        with torch.no_grad(), watching(model, lambda path, seen: found.append((path, seen))):
            model.loss(window)
    return found


# ---- weights


@pytest.mark.parametrize("case", ["chronos2", "chronos_bolt", "shared keys", "uneven"])
def test_spectra_of_weights_equal_those_of_the_full_product(case: str) -> None:
    model: Forecaster = tiny_model(case) if case.startswith("chronos") else toy(case)
    found = look("weight_spectra", model, [])
    for path, block in model.named_modules():
        if not isinstance(block, Attention):
            continue
        for head in range(block.heads):
            queries, keys = (rows.double() for rows in rows_of_head(block, head))
            product = queries.T @ keys
            s = linalg.svdvals(product.numpy())
            skew = float(((product - product.T) / 2).square().sum() / product.square().sum())
            expected = [(s**2).sum() / s[0] ** 2, s.sum(), s[0] / s[1], skew]
            assert [one.values[path][head] for one in found.measures] == pytest.approx(expected, rel=1e-6)


def test_comparisons_that_read_alike_both_ways_have_no_skew_and_turned_ones_nothing_else() -> None:
    draw = torch.Generator().manual_seed(2)
    queries = torch.randn(4, 9, generator=draw, dtype=torch.float64)
    turn = torch.zeros(4, 4, dtype=torch.float64)
    turn[0, 1], turn[1, 0], turn[2, 3], turn[3, 2] = 2, -2, 1, -1
    assert float(spectrum(queries, queries)[3]) == pytest.approx(0, abs=1e-12)
    assert float(spectrum(queries, turn @ queries)[3]) == pytest.approx(1, abs=1e-12)
    rank, nuclear, gap, skew = spectrum(queries[:1].expand(4, -1), queries[:1].expand(4, -1)).tolist()
    assert (rank, nuclear) == pytest.approx((1, 4 * float(queries[0].square().sum())))
    assert math.isnan(gap)
    assert skew == pytest.approx(0, abs=1e-12)
    assert torch.isnan(spectrum(0 * queries, queries)).tolist() == [False, False, True, True]


# ---- attention matrices


def slow_ranks(maps: Maps) -> dict[str, np.ndarray]:
    """Mean stable and effective rank `[2, H]` by path, one matrix at a time."""
    found: dict[str, list[list[list[float]]]] = {}
    for path, seen in maps:
        for row in range(len(seen.weights)):
            queries = [t for t in range(seen.counted.shape[1]) if seen.counted[row, t] and seen.live[row, t].any()]
            keys = [s for s in range(seen.live.shape[2]) if any(seen.live[row, t, s] for t in queries)]
            if min(len(queries), len(keys)) < 2:
                continue
            own: list[list[float]] = []
            for matrix in seen.weights[row].double().numpy():
                s = linalg.svdvals(matrix[np.ix_(queries, keys)])
                own.append([(s**2).sum() / s[0] ** 2, math.exp(stats.entropy(s))])
            found.setdefault(path, []).append(own)
    return {path: np.mean(values, axis=0).T for path, values in found.items()}


@pytest.mark.parametrize("case", ["shared keys", "chronos2 groups", "chronos_bolt"])
def test_spectra_of_attention_equal_a_loop_over_matrices(case: str) -> None:
    model, batch = case_of(case)
    expected = slow_ranks(maps_of(model, batch))
    found = look("attention_spectra", model, [batch])
    names = ("stable rank of attention", "effective rank of attention")
    for path in measure(found, names[0]).values:
        values = [measure(found, name).values[path] for name in names]
        if path not in expected:
            assert all(value is None for own in values for value in own)
            assert any(path in note for note in found.notes)
        else:
            assert values == [pytest.approx(own, rel=1e-6) for own in expected[path].tolist()]
    assert case == "chronos2 groups" or expected


def test_attention_alike_everywhere_has_rank_one_and_attention_to_oneself_the_highest() -> None:
    weights = torch.stack([torch.full((6, 6), 1 / 6), torch.eye(6)])[None]
    assert rank_sums(attention_of(weights)).tolist() == pytest.approx([1, 6, 1, 6, 6, 1], abs=1e-5)
    # The first two tokens are hidden from all: what they weigh must not matter.
    live = torch.ones(1, 6, 6, dtype=torch.bool)
    live[..., :2] = False
    counted = torch.tensor([[False, False, True, True, True, True]])
    weights[..., 2:, 2:] *= torch.tensor([1.5, 1])[:, None, None]
    weights[..., :2] = torch.randn(6, 2)
    assert rank_sums(attention_of(weights, live, counted)).tolist() == pytest.approx([1, 4, 1, 4, 4, 1], abs=1e-5)
    assert rank_sums(attention_of(torch.ones(3, 2, 1, 5) / 5)).tolist() == [0] * 6


def test_large_matrices_and_many_windows_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_spectra, "QUERIES", 3)
    assert rank_sums(attention_of(torch.eye(7)[None, None])).tolist() == pytest.approx([3, 3, 3, 1])
    monkeypatch.setattr(attention_spectra, "WINDOWS", 3)
    model, batch = case_of("shared keys")
    found = look("attention_spectra", model, [rows_of(batch, [0, 1, 2]), rows_of(batch, [3, 4])])
    assert found.to_json() | {"notes": []} == look(
        "attention_spectra", model, [rows_of(batch, [0, 2, 4])]
    ).to_json() | {"notes": []}
    assert "3 of 5 windows" in found.notes[0]
    assert "more than 3 queries" in found.notes[1]
    assert [float(w.context[0, -1]) for w in spread_windows([batch], 3)] == batch.context[[0, 2, 4], -1].tolist()


def test_portions_hold_no_more_weights_than_allowed() -> None:
    model, batch = case_of("shared keys")
    tokens = batch.context.shape[1] // PATCH
    of_window = 4 * tokens**2
    assert [count_windows(part) for part in in_portions(model, [batch], 2 * of_window)] == [2, 2, 1]
    assert [count_windows(part) for part in in_portions(model, [batch], 1)] == [1] * 5
    assert [count_windows(part) for part in in_portions(model, [batch])] == [5]
    assert _maps.ENTRIES * 4 == 2**28


# ---- entropy


def slow_entropies(maps: Maps, last: bool = False) -> dict[str, list[float]]:
    found: dict[str, list[list[float]]] = {}
    for path, seen in maps:
        rows, heads, queries, _ = seen.weights.shape
        for row in range(rows):
            for t in range(queries - 1 if last else 0, queries):
                live = seen.live[row, t].tolist()
                if not seen.counted[row, t] or sum(live) < 2:
                    continue
                own = [seen.weights[row, head, t].double().numpy()[live] for head in range(heads)]
                found.setdefault(path, []).append([stats.entropy(p) / math.log(len(p)) for p in own])
    return {path: np.mean(values, axis=0).tolist() for path, values in found.items()}


@pytest.mark.parametrize("case", ["shared keys", "chronos2 groups", "chronos_bolt", "chronos_t5"])
def test_entropies_of_attention_equal_a_loop_over_queries(case: str) -> None:
    if case == "chronos_t5":
        model, batch = tiny_model(case).double(), cast(tiny_batch(), torch.float64)
    else:
        model, batch = case_of(case)
    maps = maps_of(model, batch)
    found = look("attention_entropy", model, [batch])
    expected = slow_entropies(maps)
    assert len(expected) > 1
    for path, values in measure(found, "attention entropy").values.items():
        assert values == (pytest.approx(expected[path], rel=1e-6) if path in expected else [None] * len(values))
    crossing = {path for path, seen in maps if seen.crossing}
    assert bool(crossing) == ("bolt" in case or "t5" in case)
    if crossing:
        last = slow_entropies([one for one in maps if one[0] in crossing], last=True)
        values = measure(found, "entropy of the last query").values
        assert list(values) == list(last)
        assert all(values[path] == pytest.approx(last[path], rel=1e-6) for path in last)


def test_when_nothing_is_compared_then_entropy_is_one_under_every_mask() -> None:
    model, batch = case_of("shared keys")
    for block in model.modules():
        if isinstance(block, Attention):
            torch.nn.init.zeros_(block.q.weight)
            if block.q.bias is not None:
                torch.nn.init.zeros_(block.q.bias)
    found = look("attention_entropy", model, [batch])
    assert all(own == pytest.approx([1] * 4) for own in found.measures[0].values.values())
    assert "Sharp are 0 of 8 heads" in found.answer
    assert "diffuse 8" in found.answer


def test_rows_of_one_live_key_have_no_entropy_and_dead_keys_do_not_count() -> None:
    weights = torch.tensor([[0.25, 0.75, 9.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])[None, None]
    live = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])[None]
    found = entropies(weights, live)[0, 0].tolist()
    assert found[0] == pytest.approx(stats.entropy([0.25, 0.75]) / math.log(2), rel=1e-5)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(math.log(2) / math.log(3), rel=1e-5)


def test_the_sharpest_and_the_most_diffuse_heads_are_listed_apart() -> None:
    model, batch = case_of("shared keys")
    path = "block.1.layer.0.attention"
    block = model.get_submodule(path)
    with torch.no_grad():
        # The heads of the second key head compare hardly at all, the first head very much.
        block.q.weight[8:] *= 1e-6
        block.q.weight[:4] *= 100
    found = look("attention_entropy", model, [batch])
    sharp, diffuse = ([(one["path"], one["head"]) for one in found.facts[key]] for key in ("sharpest", "most_diffuse"))
    assert len(sharp) == len(diffuse) == 2
    assert sharp[0] == (path, 0)
    assert set(diffuse) == {(path, 2), (path, 3)}
    assert f"the sharpest is head 0 of {path}" in found.answer
    assert {one["label"] for one in found.facts["most_diffuse"]} == {"diffuse"}


# ---- outputs of heads


def slow_rank(written: Tensor) -> float:
    """Entropic rank of one token's contributions `[H, D]`."""
    stack = (written / written.norm(dim=-1, keepdim=True)).double().numpy()
    return float(stats.entropy(linalg.svdvals(stack)))


def test_entropic_ranks_equal_a_loop_over_tokens() -> None:
    model, batch = case_of("shared keys")
    found = measure(look("head_rank", model, [batch]), "entropic rank of head outputs")
    for path, values in found.values.items():
        block = model.get_submodule(path)
        given: list[Tensor] = []
        handle = block.o.register_forward_pre_hook(lambda _, x, given=given: given.append(x[0].detach()))
        with torch.no_grad():
            model.loss(batch)
        handle.remove()
        seen = ~torch.isnan(batch.context).view(batch.rows, -1, PATCH).all(-1)
        tokens = given[0][seen]
        stacks = [
            torch.stack([block.o.weight[:, 4 * h : 4 * h + 4] @ v[4 * h : 4 * h + 4] for h in range(4)]).detach()
            for v in tokens
        ]
        assert values == pytest.approx([math.exp(np.mean([slow_rank(one) for one in stacks]))], rel=1e-6)


def test_identical_heads_have_rank_one_and_orthogonal_ones_as_many_as_they_are() -> None:
    draw = torch.Generator().manual_seed(4)
    one = torch.randn(3, 1, 7, generator=draw, dtype=torch.float64)
    sizes = torch.tensor([1e-3, -5.0, 2.0, 7.0], dtype=torch.float64)[:, None]
    assert entropy(one * sizes).exp().tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    apart = torch.linalg.qr(torch.randn(3, 7, 4, generator=draw, dtype=torch.float64))[0].mT
    assert entropy(apart * sizes).exp().tolist() == pytest.approx([4, 4, 4], rel=1e-9)
    # A head that adds nothing is not one of them.
    apart[:, 2] = 0
    assert entropy(apart * sizes).exp().tolist() == pytest.approx([3, 3, 3], rel=1e-9)
    assert torch.isnan(entropy(0 * apart)).all()


def test_planted_heads_in_a_model_and_the_norms_beside_them() -> None:
    model, batch = case_of("both sorts of networks")
    first, second = (model.get_submodule(f"block.{n}.layer.0.attention") for n in (0, 1))
    with torch.no_grad():
        # All heads of the first read and write alike, those of the second write to places of their own.
        for weight in (first.v.weight, first.q.weight, first.k.weight):
            weight.copy_(weight[:4].repeat(4, 1))
        first.o.weight.copy_(first.o.weight[:, :4].repeat(1, 4))
        second.o.weight.zero_()
        for head in range(4):
            second.o.weight[3 * head : 3 * head + 3, 4 * head : 4 * head + 4].normal_()
        second.o.weight[:, :4] *= 1e-6
    assert WIDTH == 12
    found = look("head_rank", model, [batch])
    ranks = measure(found, "entropic rank of head outputs").values
    assert ranks["block.0.layer.0.attention"] == pytest.approx([1], abs=1e-6)
    assert ranks["block.1.layer.0.attention"] == pytest.approx([4], rel=1e-6)
    assert "1 of 8 heads add less than 5 %" in found.answer
    assert [row[3] for row in found.tables[0].rows] == [0, 1]


def test_a_window_more_in_the_batch_changes_nothing_of_a_toy_with_padding() -> None:
    batch = toy_batch()
    alone = [rows_of(batch, [row]) for row in range(batch.rows)]
    for name in ("attention_entropy", "attention_spectra", "head_rank"):
        together, apart = (look(name, toy("shared keys"), batches) for batches in ([batch], alone))
        for one, two in zip(together.measures, apart.measures, strict=True):
            assert list(one.values) == list(two.values)
            for path, own in one.values.items():
                assert two.values[path] == pytest.approx(own, rel=1e-7)
