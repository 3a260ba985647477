"""What only Time-MoE promises: heads by horizon, the roll-out, the loss at every value, balanced routers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tsprune
from tests.tiny import tiny_batch, tiny_config, tiny_model, waves
from tsprune.blocks.experts import MixtureOfExperts, Routing, balance_loss, routings
from tsprune.blocks.feedforward import FeedForward
from tsprune.data.batch import Batch
from tsprune.models.time_moe import TimeMoe
from tsprune.slimming import slim

DENSE = {"use_dense": True, "apply_aux_loss": False}


def tiny(seed: int = 0, **changes: Any) -> TimeMoe:
    model = tiny_model("time_moe", seed, **changes).double()
    assert isinstance(model, TimeMoe)
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pieces(model: TimeMoe, steps: int) -> list[int]:
    """Steps of each piece of a forecast, by the rule in words."""
    found: list[int] = []
    while (left := steps - sum(found)) > 0:
        fitting = [horizon for horizon in model.horizons if horizon <= left]
        found.append(max(fitting) if fitting else left)
    return found


def whole_again(model: TimeMoe, values: Tensor, steps: int, limit: int | None = None) -> Tensor:
    """A forecast that reads everything anew for each piece, the pieces' looks back cut off by a mask."""
    begin, ends = values.shape[1], [values.shape[1]]
    for piece in pieces(model, steps):
        length = values.shape[1]
        mask = torch.ones(length, length).tril().bool()
        for start, end in zip([0, *ends], ends, strict=False):
            if limit is not None:
                mask[start:end, : max(0, end - limit)] = False
        head = next((h for h, steps_of in zip(model.lm_heads, model.horizons, strict=True) if steps_of >= piece), None)
        assert head is not None
        ahead = head(model(values, mask=mask[None, None]))[:, -1, :piece]
        values = torch.cat([values, ahead], dim=1)
        ends.append(values.shape[1])
    return values[:, begin:]


@pytest.mark.parametrize("changes", [{}, DENSE, {"num_key_value_heads": 4}, {"horizon_lengths": [3, 8]}])
@pytest.mark.parametrize("steps", [1, 2, 7, 23, 60])
def test_a_forecast_from_kept_keys_equals_one_that_reads_everything_anew(changes: dict[str, Any], steps: int) -> None:
    model, values = tiny(**changes), noise(3, 20)
    torch.testing.assert_close(model.continued(values, steps), whole_again(model, values, steps), rtol=1e-9, atol=1e-11)


def test_the_longest_head_that_does_not_overshoot_gives_the_next_piece() -> None:
    model = tiny()
    used: list[int] = []
    for head, horizon in zip(model.lm_heads, model.horizons, strict=True):
        head.register_forward_hook(lambda *_, horizon=horizon: used.append(horizon))
    model.forecast(Batch(waves(2, 30)), 43)
    assert used == [16, 16, 4, 4, 1, 1, 1] == pieces(model, 43)


def test_a_longer_forecast_looks_back_on_as_many_values_as_were_trained_on() -> None:
    model, values = tiny(), noise(2, 64)
    assert model.reach == 80
    near = model.continued(values, 50, limit=model.reach)
    torch.testing.assert_close(near, whole_again(model, values, 50, model.reach), rtol=1e-9, atol=1e-11)
    far = model.continued(values, 50)
    assert torch.equal(near[:, :32], far[:, :32])
    assert not torch.allclose(near[:, 32:], far[:, 32:])
    batch = Batch(values)
    past = model.read(values)
    assert torch.equal(
        model.forecast(batch, 50), past.scale.invert(model.continued(past.values, 50, limit=80)[:, None])
    )


@pytest.mark.parametrize("changes", [{}, DENSE])
@pytest.mark.parametrize("length", [1, 2, 9, 40])
def test_padding_on_the_left_changes_nothing_however_long_the_forecast(changes: dict[str, Any], length: int) -> None:
    model, row, beside = tiny(**changes), waves(1, length, 3).double(), waves(1, 64).double()
    padded = torch.nn.functional.pad(row, (64 - length, 0), value=torch.nan)
    together = Batch(torch.cat([beside, padded]), waves(2, 16, 4).double())
    assert together.target is not None
    alone = Batch(row, together.target[1:])
    steps = 150
    torch.testing.assert_close(model.forecast(together, steps)[1:], model.forecast(alone, steps), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.loss(together)[1:], model.loss(alone), rtol=1e-10, atol=1e-12)


def seen_values(model: TimeMoe, batch: Batch) -> Tensor:
    """What the network reads first."""
    found: list[Tensor] = []
    handle = model.model.embed_layer.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    model.forecast(batch, 1)
    handle.remove()
    return found[0]


def test_the_network_reads_values_standardised_by_mean_and_deviation_of_a_sample() -> None:
    model, context = tiny(), waves(3, 30).double()
    context[1, 4:9] = torch.nan
    context[2, :11] = torch.nan
    values = seen_values(model, Batch(context))
    for row in range(3):
        held = ~torch.isnan(context[row])
        own = context[row][held].numpy()
        expected = (own - own.mean()) / own.std(ddof=1)
        np.testing.assert_allclose(values[row][held].numpy(), expected, rtol=1e-10, atol=1e-12)
    line = torch.linspace(float(values[1, 3]), float(values[1, 9]), 7, dtype=torch.float64)
    torch.testing.assert_close(values[1, 3:10], line)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e4])
def test_a_constant_row_is_forecast_to_stay_nearly_where_it_is(value: float) -> None:
    model = tiny().float()
    for length in (1, 2, 50):
        found = model.forecast(Batch(torch.full((1, length), value)), 40)
        assert torch.isfinite(found).all()
        assert float((found - value).abs().max()) <= 1e-3 * max(1.0, abs(value))


def slow_loss(model: TimeMoe, context: Tensor, target: Tensor) -> float:
    """The loss of one row, value by value, from its definition."""
    held = ~torch.isnan(context)
    begin = int(held.nonzero()[0])
    past, known = context[begin:].numpy(), held[begin:].numpy()
    steps = np.arange(len(past))
    last = int(steps[known][-1])
    filled = np.interp(steps, steps[known], past[known])
    ahead, carried = [], filled[-1]
    for value in target.tolist():
        carried = carried if math.isnan(value) else value
        ahead.append(carried)
    mean, spread = past[known].mean(), past[known].std(ddof=1)
    labels = (np.concatenate([past, target.numpy()]) - mean) / spread
    values = (np.concatenate([filled, ahead]) - mean) / spread
    states = model(torch.from_numpy(values[:-1])[None])
    means = []
    for head, horizon in zip(model.lm_heads, model.horizons, strict=True):
        given = head(states)[0].tolist()
        errors = []
        for place in range(len(values) - 1):
            if place < last and not known[place]:  # Filled by what comes after it.
                continue
            for step in range(horizon):
                label = labels[place + 1 + step] if place + 1 + step < len(labels) else math.nan
                if not math.isnan(label):
                    error = abs(given[place][step] - float(label))
                    errors.append(error**2 / 2 if error <= 2 else 2 * (error - 1))
        means.append(sum(errors) / len(errors))
    return float(np.mean(means))


@pytest.mark.parametrize("changes", [{}, DENSE, {"horizon_lengths": [2, 16]}])
@pytest.mark.parametrize("horizon", [1, 5, 16])
def test_the_loss_is_that_of_every_head_at_every_value_of_context_and_target(
    changes: dict[str, Any], horizon: int
) -> None:
    model = tiny(**changes)
    context, target = (part.double() for part in torch.split_with_sizes(waves(4, 28 + horizon), [28, horizon], 1))
    context[0, :9] = torch.nan
    context[1, 6:10] = torch.nan
    context[2, -3:] = torch.nan
    context[3, 5] += 40.0
    target[1, 1:3] = torch.nan
    if horizon > 1:
        target[2, -1] = torch.nan
    found = model.row_losses(Batch(context, target))
    expected = [slow_loss(model, context[row], target[row]) for row in range(4)]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-10)


def test_a_row_without_a_target_gives_nothing_to_learn_from() -> None:
    model, batch = tiny(), tiny_batch(2, horizon=8)
    assert batch.target is not None
    target = batch.target.clone()
    target[1] = torch.nan
    losses = model.train().row_losses(Batch(batch.context.double(), target.double()))
    assert losses[1] == 0
    losses[1].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def slow_balance(routed: list[Routing], experts: int, seen: Tensor) -> float:
    """Experts times the sum over them of choices per token times mean share, token by token."""
    choices, shares, tokens = [0.0] * experts, [0.0] * experts, 0
    for routing in routed:
        for row, step in seen.nonzero().tolist():
            tokens += 1
            for place, number in enumerate(routing.experts):
                shares[number] += float(routing.shares[row, step, place].detach())
                choices[number] += int((routing.chosen[row, step] == place).sum())
    return experts * sum(c * s for c, s in zip(choices, shares, strict=True)) / tokens**2


def test_the_balance_of_routers_is_part_of_the_loss_in_training_alone() -> None:
    model, batch = tiny(), tiny_batch(3, horizon=8)
    assert batch.target is not None
    batch = Batch(batch.context.double(), batch.target.double())
    plain = model.row_losses(batch)
    with routings(model) as routed:
        trained = model.train().row_losses(batch)
    length = batch.context.shape[1] + 8 - 1
    seen = torch.ones(3, length).bool()
    seen[0, :11] = False
    assert len(routed) == 2
    expected = 0.02 * slow_balance(routed, 3, seen)
    torch.testing.assert_close(trained - plain, torch.full_like(plain, expected), rtol=1e-6, atol=1e-9)
    assert all(module.watch is None for module in model.modules() if isinstance(module, MixtureOfExperts))
    without = tiny(router_aux_loss_factor=0.0)
    assert torch.equal(without.train().row_losses(batch), without.eval().row_losses(batch))


def test_balance_is_k_where_all_experts_get_the_same_and_only_shares_have_a_gradient() -> None:
    shares = torch.full((1, 6, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor([[[0, 1], [1, 2], [2, 0]] * 2])
    found = balance_loss([Routing(shares.log(), shares, chosen, (0, 1, 2))], 3)
    torch.testing.assert_close(found, torch.tensor(2.0, dtype=torch.float64))
    found.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(shares.grad, torch.full_like(shares, 3 * (2 / 3) / 6))


def test_when_experts_go_then_training_on_what_is_left_is_training_under_the_mask() -> None:
    model = tiny(num_experts=5)
    batch = Batch(waves(3, 40).double(), waves(3, 16, 1).double())
    kept = {"model.layers.0.layer.1.ffn_layer/expert": [0, 2, 4], "model.layers.1.layer.1.ffn_layer/expert": [1, 3]}
    smaller = slim(model, kept).train()
    with model.train().masked(kept):
        expected = model.row_losses(batch)
    torch.testing.assert_close(smaller.row_losses(batch), expected)
    every: dict[str, list[int]] = {name: [] for name, group in model.unit_groups().items() if group.kind == "ffn"}
    assert torch.isfinite(slim(model, every).train().row_losses(batch)).all()


def test_a_model_without_its_first_attention_still_rolls_out_from_kept_keys() -> None:
    model = tiny()
    smaller = slim(model, {"model.layers.0.layer.0/attention": []})
    assert isinstance(smaller, TimeMoe)
    values = noise(2, 20)
    torch.testing.assert_close(smaller.continued(values, 40), whole_again(smaller, values, 40), rtol=1e-9, atol=1e-11)


def mixture(chosen: list[int], experts: int = 4, used: int = 1) -> tuple[MixtureOfExperts, Tensor]:
    """A mixture and tokens that its router sends to the chosen experts."""
    torch.manual_seed(0)
    parts = [FeedForward(experts, 6, act="silu", gated=True) for _ in range(experts)]
    block = MixtureOfExperts(experts, parts, used).eval()
    with torch.no_grad():
        block.gate.get_parameter("weight").copy_(torch.eye(experts))
    return block, 5.0 * torch.eye(experts)[chosen][None]


def test_experts_without_tokens_do_no_work_and_others_run_once_on_theirs() -> None:
    block, x = mixture([2, 0, 2, 2, 0])
    ran: list[tuple[str, int]] = []
    for name, expert in block.experts.items():
        expert.register_forward_hook(lambda _, given, __, name=name: ran.append((name, len(given[0]))))
    block(x)
    assert ran == [("0", 2), ("2", 3)]


def test_what_a_token_gets_does_not_depend_on_how_the_others_are_grouped() -> None:
    block, _ = mixture([0], experts=8, used=3)
    block, x = block.double(), noise(4, 6, 8)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    shuffled = x.flatten(0, 1)[order].view(6, 4, 8)
    torch.testing.assert_close(block(shuffled).flatten(0, 1), block(x).flatten(0, 1)[order], rtol=1e-12, atol=1e-12)


def test_mixtures_run_under_autocast_near_single_precision() -> None:
    block, _ = mixture([0], experts=8, used=2)
    x = noise(2, 5, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = block(x)
    torch.testing.assert_close(half.float(), block(x), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("changes", [{}, DENSE])
def test_saved_tensors_carry_the_public_names(changes: dict[str, Any]) -> None:
    network = ("gate_proj", "up_proj", "down_proj")
    paths = ["gate", "shared_expert_gate"]
    paths += [f"{part}.{name}" for part in ("experts.0", "experts.1", "experts.2", "shared_expert") for name in network]
    wanted = {"model.embed_layer.emb_layer.weight", "model.embed_layer.gate_layer.weight", "model.norm.weight"}
    wanted |= {f"lm_heads.{number}.out_layer.weight" for number in range(3)}
    for layer in ("model.layers.0", "model.layers.1"):
        wanted |= {f"{layer}.self_attn.{name}_proj.weight" for name in "qkvo"}
        wanted |= {f"{layer}.self_attn.{name}_proj.bias" for name in "qkv"}
        wanted |= {f"{layer}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")}
        wanted |= {f"{layer}.ffn_layer.{path}.weight" for path in (network if changes else paths)}
    assert set(tiny(**changes).tensors_to_public()) == wanted


def test_the_mini_config_is_small_and_reads_a_week_of_hours() -> None:
    path = Path(tsprune.__file__).parent / "bundled" / "configs" / "time_moe-mini.json"
    model = TimeMoe.from_config(json.loads(path.read_text()))
    assert model.parameter_count() < 4.5e6
    assert (model.context_length, model.native_horizon) == (288, 64)


def test_a_config_with_one_horizon_as_a_number_is_understood() -> None:
    model = TimeMoe.from_config(tiny_config("time_moe", horizon_lengths=8))
    assert (model.horizons, model.native_horizon, model.context_length) == ((8,), 8, 72)
