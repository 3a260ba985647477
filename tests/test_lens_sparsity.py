"""Activity of channels, use of experts and entropies of routers: against loops and planted cases."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from tests.looking import look, measure
from tests.toy import case_of, rows_of
from tsprune.blocks.experts import routings

MIXTURE = "block.0.layer.1.mlp"


def routing_row(findings: object, path: str = MIXTURE) -> dict[str, float]:
    (row,) = (one for one in findings.facts["routers"] if one["mixture"] == path)  # type: ignore[attr-defined]
    return row  # type: ignore[no-any-return]


def test_router_entropies_equal_a_loop_over_tokens() -> None:
    model, batch = case_of("experts")
    found = look("sparsity", model, [batch])
    with torch.no_grad(), routings(model) as seen:
        model.loss(batch)
    live = ~torch.isnan(batch.context).view(batch.rows, -1, 4).all(-1)
    shares, chosen = seen[0].shares[live], seen[0].chosen[live]
    row = routing_row(found)
    each = [stats.entropy(token.numpy()) for token in shares]
    assert row["entropy of a token's router"] == pytest.approx(sum(each) / len(each) / math.log(5), rel=1e-9)
    mass = torch.zeros(5, dtype=torch.float64)
    for token, two in zip(shares, chosen, strict=True):
        mass[two] += token[two]
    assert row["entropy of mean usage"] == pytest.approx(stats.entropy(mass.numpy()) / math.log(5), rel=1e-9)
    assert row["experts in effect"] == pytest.approx(math.exp(stats.entropy(mass.numpy())), rel=1e-9)
    assert measure(found, "mass of an expert").values[MIXTURE] == pytest.approx((mass / mass.sum()).tolist(), rel=1e-7)
    tokens = [float((chosen == expert).any(-1).double().mean()) for expert in range(5)]
    assert measure(found, "tokens of an expert").values[MIXTURE] == pytest.approx(tokens, abs=1e-7)
    # The last expert of the toys is never chosen, so its six channels are idle too.
    assert tokens[4] == 0
    assert row["below 0.1 %"] >= 1
    assert measure(found, "strength").values[f"{MIXTURE}.experts.4"] == [0] * 6


@pytest.mark.parametrize("sharp", [False, True])
def test_routers_that_cannot_decide_have_entropy_one_and_decided_ones_none(sharp: bool) -> None:
    model, batch = case_of("experts")
    for number in (0, 1):
        gate = model.get_submodule(f"block.{number}.layer.1.mlp.gate")
        with torch.no_grad():
            # Logits of u, -u, v, -v and 0: scaled up, one expert has all.
            gate.weight.mul_(1e5 if sharp else 0)
    row = routing_row(look("sparsity", model, [batch]))
    assert row["entropy of a token's router"] == pytest.approx(0 if sharp else 1, abs=0.01)
    # Ties go to the same two experts each time.
    assert sharp or row["experts in effect"] == pytest.approx(2)


def test_when_one_expert_is_masked_then_routers_are_measured_by_those_left() -> None:
    model, batch = case_of("experts")
    with torch.no_grad():
        model.get_submodule(f"{MIXTURE}.gate").weight.zero_()
    with model.masked({f"{MIXTURE}/expert": [0, 1, 3]}):
        row = routing_row(look("sparsity", model, [batch]))
    assert row["experts"] == 3
    assert row["entropy of a token's router"] == pytest.approx(1)


def test_planted_idle_channels_are_counted_by_the_sort_of_their_network() -> None:
    model, batch = case_of("both sorts of networks")
    plain, gated = (model.get_submodule(f"block.{n}.layer.1.mlp") for n in (0, 1))
    with torch.no_grad():
        plain.wo.weight.zero_()
        plain.wi.bias.fill_(100)
        plain.wi.bias[[2, 5]] = -100
        gated.wi_1.weight[3] *= 1e-4
    found = look("sparsity", model, [batch])
    assert measure(found, "activity").values[MIXTURE] == [0 if c in (2, 5) else 1 for c in range(10)]
    assert measure(found, "strength").values["block.1.layer.1.mlp"][3] < 1e-3
    assert [row[4] for row in found.tables[0].rows] == [2, 1]
    assert "3 of 20 feed-forward channels are idle" in found.answer
    assert "active on 80 % of tokens" in found.answer


def test_sparsity_does_not_depend_on_how_windows_are_batched() -> None:
    model, batch = case_of("experts")
    together = look("sparsity", model, [batch])
    apart = look("sparsity", model, [rows_of(batch, [0]), rows_of(batch, [1, 2, 3]), rows_of(batch, [4])])
    for one, two in zip(together.facts["routers"], apart.facts["routers"], strict=True):
        assert list(one.values())[1:] == pytest.approx(list(two.values())[1:], rel=1e-9)
    for one, two in zip(together.measures, apart.measures, strict=True):
        assert all(two.values[path] == pytest.approx(own, rel=1e-7, abs=1e-12) for path, own in one.values.items())
