"""What only Chronos-T5 promises: tokens of uniform bins, drawn by random numbers that all rows share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tsprune
from tests.tiny import tiny_batch, tiny_config, tiny_model, waves
from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models import chronos_t5
from tsprune.models._bins import UniformBins
from tsprune.models._sampling import Sampling, common_uniforms
from tsprune.models.chronos_t5 import MISSING, ChronosT5
from tsprune.slimming import slim

BINS = UniformBins(low=-1.0, high=1.0, tokens=14, special=2, pad=0, end=1, ends=True)
TABLE = "decoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


def t5(**changes: object) -> ChronosT5:
    model = tiny_model("chronos_t5", **changes)
    assert isinstance(model, ChronosT5)
    return model


def likeliest(logits: Tensor, step: int) -> Tensor:
    return logits.argmax(-1)


def test_a_value_gets_the_id_of_the_nearest_centre_and_comes_back_as_it() -> None:
    scale = torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    values = torch.randn(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = BINS.encode(values, scale)
    centres = np.linspace(-1, 1, 11)
    nearest = np.abs((values / scale).numpy()[..., None] - centres).argmin(-1)
    assert np.array_equal(ids.numpy(), nearest + 3)
    np.testing.assert_allclose(BINS.decode(ids, scale), centres[nearest] * scale.numpy(), atol=1e-12)
    assert torch.equal(BINS.encode(BINS.decode(ids, scale), scale), ids)


def test_edges_go_up_limits_are_kept_and_missing_values_are_padding() -> None:
    one = torch.ones(1, 1)
    values = torch.tensor([[-0.5, 0.5, 1e30, -1e30, float("nan")]])
    bins = UniformBins(low=-1.0, high=1.0, tokens=6, special=2, pad=0, end=1, ends=True)
    assert bins.encode(values, one).tolist() == [[4, 5, 5, 3, 0]]
    assert bins.decode(torch.tensor([[0, 1, 2, 3, 4, 5]]), one).tolist() == [[-1, -1, -1, -1, 0, 1]]
    assert bins.with_end(torch.tensor([[4]])).tolist() == [[4, 1]]


def test_the_scale_is_the_mean_absolute_value_of_what_is_observed() -> None:
    nan = float("nan")
    rows = torch.tensor([[nan, -2.0, 4.0], [0.0, 0.0, 0.0], [nan, nan, nan]])
    assert BINS.scale(rows).tolist() == [[3.0], [1.0], [1.0]]


def test_tokens_below_the_kth_or_outside_the_top_mass_are_never_drawn() -> None:
    likely = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.1, 0.1])
    logits = likely.log()[None, None]
    # Three share the third place, so all of them stay.
    kept = Sampling(top_k=3).probabilities(logits)[0, 0]
    torch.testing.assert_close(kept, torch.tensor([0, 0.4, 0.1, 0.25, 0.1, 0.1], dtype=torch.float64) / 0.95)
    for share, stay in ((0.3, [1]), (0.5, [1, 3]), (0.6, [1, 3])):
        found = Sampling(top_k=0, top_p=share).probabilities(logits)[0, 0]
        assert found.nonzero().flatten().tolist() == stay
    cooler = Sampling(temperature=0.5, top_k=0).probabilities(logits)[0, 0]
    torch.testing.assert_close(cooler, (likely**2 / (likely**2).sum()).double())


def test_draws_invert_the_cumulative_distribution() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 40, 9, generator=draw)
    uniforms = torch.rand(40, generator=draw, dtype=torch.float64)
    found = Sampling(top_k=5).draw(logits, uniforms)
    for row in range(3):
        for path in range(40):
            likely = Sampling(top_k=5).probabilities(logits[row, path]).numpy()
            reached = np.cumsum(likely) / likely.sum()
            assert found[row, path] == int(np.argmax(reached > float(uniforms[path])))


def test_draws_are_as_frequent_as_the_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 5000, 4)
    found = Sampling(top_k=0).draw(logits, common_uniforms(5000, 1, 0)[:, 0])
    np.testing.assert_allclose(np.bincount(found[0], minlength=4) / 5000, [0.1, 0.2, 0.3, 0.4], atol=3e-4)


def test_the_largest_random_number_still_draws_a_token_that_may_be_drawn() -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0, -torch.inf]]])
    almost = torch.tensor([1 - 1e-12], dtype=torch.float64)
    assert Sampling(top_k=0).draw(logits, almost).item() == 2


def test_random_numbers_fill_every_part_of_the_interval_once_a_step_and_do_not_change_with_more_steps() -> None:
    found = common_uniforms(20, 64, 3)
    assert found.shape == (20, 64)
    strata = (found * 20).floor().long().sort(dim=0).values
    assert torch.equal(strata, torch.arange(20)[:, None].expand(20, 64))
    assert torch.equal(common_uniforms(20, 9, 3), found[:, :9])
    assert not torch.equal(common_uniforms(20, 64, 4), found)
    paths = torch.corrcoef(found)
    assert float((paths - torch.eye(20)).abs().max()) < 0.5


def uncached(model: ChronosT5, context: Tensor, uniforms: Tensor) -> Tensor:
    """Token ids `[B, S, steps]`, the whole decoder run again for every token of every path."""
    known = model.encode(context)
    found = torch.zeros(len(context), *uniforms.shape, dtype=torch.long)
    for path in range(uniforms.shape[0]):
        before = torch.full((len(context), 1), model.start)
        for step in range(uniforms.shape[1]):
            length = step + 1
            earlier = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            buckets = model.parts.distances(length, before.device, bidirectional=False)
            states = model.decoder(model.shared(before), known.memory, known.allowed, earlier, buckets)
            logits = model._logits(states[:, -1:])
            logits[..., model.bins.end] = -torch.inf
            found[:, path, step] = model.sampling.draw(logits, uniforms[[path], step])[:, 0]
            before = torch.cat([before, found[:, path, [step]]], dim=1)
    return found


@pytest.mark.parametrize("kept", [{}, {"decoder.block.1.layer.0.SelfAttention/head": [2]}])
def test_kept_keys_and_values_change_no_token(kept: dict[str, list[int]]) -> None:
    model = slim(t5(temperature=1.0, top_k=30).double(), kept)
    context = tiny_batch(3).context.double()
    uniforms = common_uniforms(4, 16, 0)
    with torch.no_grad():
        found, _ = model.generate(context, lambda x, step: model.sampling.draw(x, uniforms[:, step]), 4, 16)
        assert torch.equal(found, uncached(model, context, uniforms))


def test_context_is_encoded_once_a_block_and_its_keys_are_made_once() -> None:
    model, calls = t5(), {"encoder": 0, "cross": 0, "self": 0}

    def count(name: str) -> None:
        calls[name] += 1

    model.encoder.register_forward_hook(lambda *_: count("encoder"))
    layer = model.decoder.block[0].layer
    for name, branch in (("self", layer[0].SelfAttention), ("cross", layer[1].EncDecAttention)):
        assert isinstance(branch, Attention)
        branch.k.register_forward_hook(lambda *_, name=name: count(name))
    model.forecast(tiny_batch(), 20)
    assert calls == {"encoder": 2, "cross": 2, "self": 20}


def test_quantiles_are_those_of_the_sampled_paths() -> None:
    model, context = t5(), tiny_batch().context
    uniforms = common_uniforms(20, 16, 0)
    with torch.no_grad():
        ids, scale = model.generate(context, lambda x, step: model.sampling.draw(x, uniforms[:, step]), 20, 16)
    paths = model.bins.decode(ids, scale).numpy()
    found = model.forecast(Batch(context), 16)
    np.testing.assert_allclose(found.transpose(0, 1), np.quantile(paths, model.levels, axis=1), rtol=1e-5, atol=1e-5)


def test_beyond_the_native_horizon_the_median_path_joins_the_context() -> None:
    model, context = t5(), tiny_batch().context
    uniforms = common_uniforms(20, 21, 0)
    with torch.no_grad():
        first = model._paths(context, uniforms[:, :16])
        # The lower of the two middle ones, as there is an even number of paths.
        middle = first.sort(dim=1).values[:, 9]
        second = model._paths(torch.cat([context, middle], dim=1), uniforms[:, 16:])
        assert torch.equal(model._paths(context, uniforms), torch.cat([first, second], dim=-1))


def test_a_shorter_forecast_is_the_beginning_of_a_longer_one() -> None:
    model, batch = t5().double(), tiny_batch()
    long = model.forecast(batch, 23)
    for steps in (5, 16, 18):
        torch.testing.assert_close(model.forecast(batch, steps), long[..., :steps])


def test_seed_and_number_of_samples_are_attributes_and_nothing_else_is_random() -> None:
    model, batch = t5(), tiny_batch()
    plain = model.forecast(batch, 16)
    torch.manual_seed(99)
    assert torch.equal(model.forecast(batch, 16), plain)
    model.seed = 5
    assert not torch.equal(model.forecast(batch, 16), plain)
    model.seed, model.num_samples = 0, 1
    single = model.forecast(batch, 16)
    assert torch.equal(single, single[:, :1].expand_as(single))
    assert not torch.equal(single[:, 4], plain[:, 4])


def test_equal_rows_get_equal_forecasts_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = t5().double(), waves(5, 40).double()
    whole = model.forecast(Batch(context[[0, 1, 2, 3, 4, 1]]), 20)
    torch.testing.assert_close(whole[1], whole[5])
    monkeypatch.setattr(chronos_t5, "PATHS_AT_ONCE", 45)
    torch.testing.assert_close(model.forecast(Batch(context), 20), whole[:5])


def test_the_end_is_never_drawn_however_likely() -> None:
    model = t5(tie_word_embeddings=False)
    assert model.lm_head is not None
    with torch.no_grad():
        model.lm_head.weight[model.bins.end] = 50 * model.lm_head.weight.abs().max()
        uniforms = common_uniforms(20, 16, 0)
        for choose in (likeliest, lambda x, step: model.sampling.draw(x, uniforms[:, step])):
            ids, _ = model.generate(tiny_batch().context, choose, 20, 16)
            assert not bool((ids == model.bins.end).any())


def test_logits_shrink_with_the_root_of_the_width_where_the_config_says_so() -> None:
    batch = tiny_batch()
    assert batch.target is not None
    scaled, plain = t5(), t5(scale_decoder_outputs=False)
    plain.load_state_dict(scaled.state_dict())
    old = t5(scale_decoder_outputs=None)
    with torch.no_grad():
        small, large = scaled(batch.context, batch.target)[0], plain(batch.context, batch.target)[0]
        torch.testing.assert_close(small * 24**0.5, large)
        assert torch.equal(old(batch.context, batch.target)[0], small)
    assert not t5(tie_word_embeddings=False, scale_decoder_outputs=None).scaled


def test_the_loss_is_the_mean_cross_entropy_of_observed_tokens_and_the_end() -> None:
    model, batch = t5().double(), tiny_batch()
    assert batch.target is not None
    target = batch.target.double()
    target[1, 3:9] = torch.nan
    target[2] = torch.nan
    losses = model.row_losses(Batch(batch.context.double(), target))
    with torch.no_grad():
        logits, labels = model(batch.context.double(), target)
    assert labels.shape == (4, 17)
    assert labels[:, -1].tolist() == [model.bins.end] * 4
    for row in (0, 1, 3):
        counted = [step for step in range(17) if labels[row, step] != MISSING]
        assert len(counted) == 17 - int(torch.isnan(target[row]).sum())
        chances = [-float(logits[row, step].log_softmax(-1)[labels[row, step]]) for step in counted]
        assert losses[row].item() == pytest.approx(sum(chances) / len(counted))
    assert losses[2].item() == 0
    (gradient,) = torch.autograd.grad(losses[2], model.shared.weight)
    assert float(gradient.abs().max()) == 0


def test_a_target_shorter_than_the_native_horizon_has_no_end() -> None:
    model, batch = t5(), tiny_batch()
    assert batch.target is not None
    logits, labels = model(batch.context, batch.target[:, :9])
    assert labels.shape == (4, 9)
    whole, _ = model(batch.context, batch.target)
    torch.testing.assert_close(logits, whole[:, :9])


def test_no_logit_sees_its_own_label_or_later_ones() -> None:
    model, batch = t5(), tiny_batch()
    assert batch.target is not None
    changed = batch.target.clone()
    changed[:, 7:] += 3
    first, second = model(batch.context, batch.target)[0], model(batch.context, changed)[0]
    torch.testing.assert_close(first[:, :8], second[:, :8])
    assert not torch.allclose(first[:, 8], second[:, 8])


def saved(model: ChronosT5, folder: Path) -> dict[str, Tensor]:
    tsprune.save(model, folder)
    return load_file(folder / "model.safetensors")


def test_files_hold_one_table_a_stack_until_tables_differ(tmp_path: Path) -> None:
    model = t5()
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            first, second = (stack.block[n].layer[0].SelfAttention.relative_attention_bias for n in (0, 1))
            second.weight.copy_(first.weight)
    names = saved(model, tmp_path / "public")
    assert [name for name in names if "relative_attention_bias" in name and ".block.0." not in name] == []
    loaded = tsprune.load(tmp_path / "public")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        loaded.get_parameter(TABLE.format(1))[0, 0] += 1
    assert isinstance(loaded, ChronosT5)
    assert TABLE.format(1) in saved(loaded, tmp_path / "tuned")
    again = tsprune.load(tmp_path / "tuned")
    assert torch.equal(again.get_parameter(TABLE.format(1)), loaded.get_parameter(TABLE.format(1)))


def test_tied_copies_of_the_embedding_are_accepted(tmp_path: Path) -> None:
    model = t5()
    tensors = saved(model, tmp_path)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors["shared.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = tsprune.load(tmp_path)
    assert loaded.parameter_count() == model.parameter_count()
    assert loaded.notes == ()


def test_a_head_of_its_own_under_a_config_that_calls_it_tied_is_used_and_told(tmp_path: Path) -> None:
    model, batch = t5(tie_word_embeddings=False, scale_decoder_outputs=False), tiny_batch()
    saved(model, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    loaded = tsprune.load(tmp_path)
    assert torch.equal(loaded.forecast(batch, 16), model.forecast(batch, 16))
    assert loaded.head_paths == ("lm_head",)
    assert "another head" in loaded.notes[0]
    tsprune.save(loaded, tmp_path / "again")
    again = tsprune.load(tmp_path / "again")
    assert torch.equal(again.forecast(batch, 16), model.forecast(batch, 16))


def test_what_trains_as_head_is_the_tied_embedding_or_the_head() -> None:
    for changes in ({}, {"tie_word_embeddings": False}):
        model, batch = t5(**changes), tiny_batch()
        model.requires_grad_(False)
        for path in model.head_paths:
            model.get_submodule(path).requires_grad_(True)
        model.loss(batch).sum().backward()
        trained = [name for name, p in model.named_parameters() if p.grad is not None]
        assert trained == (["lm_head.weight"] if changes else ["shared.weight"])


def test_at_least_one_attention_to_the_context_is_essential() -> None:
    model = t5()
    (paths,) = model.essential()
    assert paths == [f"decoder.block.{number}.layer.1.EncDecAttention" for number in (0, 1)]
    assert all(f"{path}/head" in model.unit_groups() for path in paths)


def test_models_that_continue_the_context_itself_are_refused() -> None:
    config = tiny_config("chronos_t5")
    config["chronos_config"] = config["chronos_config"] | {"model_type": "causal"}
    with pytest.raises(TspruneError, match="model_type is 'causal'"):
        ChronosT5.from_config(config)
