"""What only Moirai-MoE promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tsprune
from tests.families.moirai_moe import MoiraiExperts
from tests.tiny import tiny_batch, tiny_model, waves
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.data.batch import Batch
from tsprune.models._packedwindows import PATHS, pooled_quantiles
from tsprune.models.moirai_moe import MoiraiMoE
from tsprune.slimming import make_plan, slim

EXPERTS = "encoder.layers.{}.layer.1.ffn/expert"


def model(**changes: Any) -> MoiraiMoE:
    made = tiny_model("moirai_moe", **changes)
    assert isinstance(made, MoiraiMoE)
    return made


def mixtures(made: MoiraiMoE) -> list[MixtureOfExperts]:
    return [module for module in made.modules() if isinstance(module, MixtureOfExperts)]


def test_tokens_go_to_the_two_farthest_experts_weighed_by_their_distances() -> None:
    mixture = mixtures(model())[0]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    out = mixture(x)
    assert not isinstance(mixture.gate, torch.nn.Linear)
    for row in range(2):
        for token in range(5):
            distance = (x[row, token] - mixture.gate.centroids).norm(dim=-1)
            best = distance.argsort(descending=True)[:2]
            weights = distance[best].softmax(-1)
            experts = [mixture.experts[str(int(number))] for number in best]
            expected = sum(w * e(x[row, token]) for w, e in zip(weights, experts, strict=True))
            torch.testing.assert_close(out[row, token], expected)


def test_fresh_centres_send_tokens_to_every_expert() -> None:
    made = model(num_experts=6)
    chosen: list[torch.Tensor] = []
    for mixture in mixtures(made):
        mixture.watch = lambda logits, shares, picked: chosen.append(picked.flatten())
    made.forecast(Batch(waves(8, 64)), 16)
    for layer in range(2):
        assert len(chosen[layer].unique()) == 6


def test_centres_are_saved_as_one_tensor_and_load_from_double_precision(tmp_path: Path) -> None:
    made = model()
    public = made.tensors_to_public()
    assert public["encoder.centroid"].shape == (2, 3, 32)
    assert not [name for name in public if "centroids" in name]
    public["encoder.centroid"] = public["encoder.centroid"].double()
    back = made.tensors_from_public(public)
    for name, tensor in made.state_dict().items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    tsprune.save(made, tmp_path / "whole")
    loaded = tsprune.load(tmp_path / "whole")
    assert torch.equal(loaded.forecast(tiny_batch(), 20), made.forecast(tiny_batch(), 20))


@pytest.mark.parametrize("removed", [{0: [0, 2]}, {0: [0, 2], 1: [1, 2]}])
def test_layers_with_different_numbers_of_experts_save_their_own_centres(
    removed: dict[int, list[int]], tmp_path: Path
) -> None:
    made = model()
    kept = {EXPERTS.format(layer): units for layer, units in removed.items()}
    smaller = slim(made, kept)
    tsprune.save(smaller, tmp_path / "slim", make_plan(made, kept, base_model="tiny"))
    stored = load_file(tmp_path / "slim" / "model.safetensors")
    together = len(removed) == 2
    assert ("encoder.centroid" in stored) == together
    assert ("encoder.centroid.0" in stored) != together
    loaded = tsprune.load(tmp_path / "slim")
    assert torch.equal(loaded.forecast(tiny_batch(), 20), smaller.forecast(tiny_batch(), 20))


def test_a_model_without_a_layers_experts_saves_the_centres_that_are_left(tmp_path: Path) -> None:
    made = model()
    kept = {"encoder.layers.0.layer.1/ffn": []}
    tsprune.save(slim(made, kept), tmp_path / "slim", make_plan(made, kept, base_model="tiny"))
    stored = load_file(tmp_path / "slim" / "model.safetensors")
    assert sorted(name for name in stored if "centroid" in name) == ["encoder.centroid.1"]
    loaded = tsprune.load(tmp_path / "slim")
    with made.masked(kept):
        expected = made.forecast(tiny_batch(), 20)
    torch.testing.assert_close(loaded.forecast(tiny_batch(), 20), expected, rtol=1e-4, atol=1e-3)


def test_half_precision_keeps_distances_in_single_precision() -> None:
    made = model().to(torch.bfloat16)
    seen: list[torch.dtype] = []
    for mixture in mixtures(made):
        mixture.watch = lambda logits, shares, picked: seen.append(logits.dtype)
    made.forecast(tiny_batch(), 16)
    assert seen == [torch.float32, torch.float32]


def test_the_loss_is_that_of_the_patch_behind_the_context() -> None:
    made, batch = model(), tiny_batch()
    mixture, location, scale = made._mixture(made._windows(batch), 16)
    assert batch.target is not None
    known = torch.nan_to_num(batch.target)
    density = mixture.log_prob(known) + scale.log()
    expected = -torch.where(torch.isnan(batch.target), torch.nan, density).nanmean(-1)
    torch.testing.assert_close(made.row_losses(batch), expected)
    made.objective = "mse"
    error = ((mixture.mean - batch.target) / scale).square().nanmean(-1)
    torch.testing.assert_close(made.row_losses(batch), error, rtol=1e-4, atol=1e-5)
    assert location.shape == (4, 1)


def test_a_long_forecast_goes_patch_by_patch() -> None:
    made, batch = model(), Batch(waves(2, 48))
    first = made._block(batch, 16, PATHS)
    samples = torch.cat(
        [
            made._block(Batch(torch.cat([batch.context, first[:, path]], dim=-1)), 16, PATHS)
            for path in range(len(PATHS))
        ],
        dim=1,
    )
    found = made.forecast(batch, 30)
    torch.testing.assert_close(found[..., :16], made.forecast(batch, 16))
    torch.testing.assert_close(found[..., 16:], pooled_quantiles(samples, made.levels)[..., :14], rtol=1e-4, atol=1e-3)


def test_reference_cases_get_both_losses_without_gradients_too() -> None:
    made, ids = model(), torch.ones(1, 4, dtype=torch.long)
    inputs = {
        "target": waves(1, 64).view(1, 4, 16),
        "observed_mask": torch.ones(1, 4, 16, dtype=torch.bool),
        "sample_id": ids,
        "time_id": torch.arange(4)[None],
        "variate_id": 0 * ids,
        "prediction_mask": torch.tensor([[False, False, False, True]]),
        "patch_size": 16 * ids,
    }
    with_graph = MoiraiExperts().forward(made, inputs, {"kind": "module"})
    with torch.no_grad():
        without = MoiraiExperts().forward(made, inputs, {"kind": "module"})
    for name in ("loss", "loss_same_token"):
        torch.testing.assert_close(without[name], with_graph[name].detach())
    assert float((without["loss"] - without["loss_same_token"]).abs()) > 1e-3
