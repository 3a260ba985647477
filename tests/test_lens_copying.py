"""Induction scores and parroting indices on a model that is built to copy, and on series where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.copier import PATCH, Copier, quiet, study
from tests.tiny import tiny_batch, tiny_model, waves
from tsprune import lens
from tsprune.data.batch import Batch
from tsprune.lens import _parrots, _tiles
from tsprune.lens.induction import Induction
from tsprune.lens.parroting import Parroting
from tsprune.models._forecaster import Forecaster

COPYING = ("block.0.layer.0.attention", 1)


class Fixed(Forecaster):
    """Answers with a function of the context."""

    family = "fixed"

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.levels, self.native_horizon, self.context_length = (0.5,), 1000, 1000
        self.answer = answer
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def predict(self, batch: Batch, steps: int) -> Tensor:
        found: Tensor = self.answer(batch, steps)
        return found[:, None, :]


def noisy(rows: int = 6, length: int = 60, horizon: int = 12) -> Batch:
    values = torch.randn(rows, length + horizon, generator=torch.Generator().manual_seed(2))
    return Batch(values[:, :length], values[:, length:])


def seasonal(rows: int = 6) -> Batch:
    """Contexts with a season of 8 steps, futures of noise without one."""
    draw = torch.Generator().manual_seed(4)
    time = torch.arange(64).float()
    context = torch.sin(2 * torch.pi * time / 8 + torch.rand(rows, 1, generator=draw) * 6)
    return Batch(context + 0.01 * torch.randn(rows, 64, generator=draw), torch.randn(rows, 32, generator=draw))


# ---- the planted head


def test_the_planted_head_is_found_and_alone_carries_repetition() -> None:
    model = Copier()
    found = Induction().run(study(model, [noisy()]), quiet)
    assert found.facts["induction_heads"] == [list(COPYING)]
    scores = found.measures[0].values
    assert scores[COPYING[0]][COPYING[1]] == pytest.approx(1, abs=0.02)
    # Every other head attends evenly: to three copies among 13 live keys or more.
    assert all(
        v is not None and v < 0.25 for path, row in scores.items() for u, v in enumerate(row) if (path, u) != COPYING
    )
    without = {m.name: m.values for m in found.measures}["error on repeats without it"]
    assert found.facts["error"] < 0.05
    assert without[COPYING[0]][COPYING[1]] == pytest.approx(1, abs=0.3)
    assert without[COPYING[0]][0] == pytest.approx(0, abs=1e-6)
    top, lowest, _ = found.curves
    assert top.y[1] == pytest.approx(top.y[-1]) and lowest.y[1] == pytest.approx(found.facts["error"])
    assert set(found.facts["asked_by"].values()) == {"order"}


def test_without_the_planted_head_nothing_is_repeated() -> None:
    batch = noisy(horizon=PATCH)
    found = Parroting().run(study(Copier(), [batch], [noisy(horizon=PATCH)], horizon=PATCH), quiet)
    assert found.facts["parroting"]["estimate"] == pytest.approx(1, abs=1e-3)
    assert found.facts["parroting_excess"]["low"] > 0.1
    change = found.measures[0].values
    assert change[COPYING[0]][COPYING[1]] < -0.2  # type: ignore[operator]
    assert change[COPYING[0]][0] == pytest.approx(0, abs=1e-6)
    assert found.facts["drivers"][0] == list(COPYING)


def test_the_model_is_left_as_it_was_found() -> None:
    model, batch = Copier(), noisy()
    before = model.forecast(batch, 8)
    Induction().run(study(model, [batch]), quiet)
    Parroting().run(study(model, [batch], [batch]), quiet)
    assert torch.equal(model.forecast(batch, 8), before)
    assert all(getattr(m, "mask", None) is None and getattr(m, "watch", None) is None for m in model.modules())


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("chronos2", "forecast"),
        ("time_moe", "order"),
        ("timesfm", "order"),
        ("patchtst", "context"),
        ("moirai2", "order"),
    ],
)
def test_tokens_are_told_from_patches(family: str, how: str) -> None:
    model = tiny_model(family)
    tokens, why = _tiles.token_patches(model)
    assert not why
    tiles = _tiles.Tiles.of(model, 0, rows=2)
    assert [patch for patch in tokens if patch >= 0] == list(range(tiles.patches))
    scores = _tiles.head_scores(model, tiles, tokens)
    assert scores and {one.how for one in scores.values()} == {how}
    for one in scores.values():
        assert bool((one.prefix <= one.score + 1e-9).all()) and bool((one.score <= 1 + 1e-6).all())


def test_even_attention_has_the_score_of_chance() -> None:
    model = tiny_model("timesfm")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".q." in name or "query" in name:
                weight.zero_()
    tokens, _ = _tiles.token_patches(model)
    for one in _tiles.head_scores(model, _tiles.Tiles.of(model, 0), tokens).values():
        assert torch.allclose(one.score, torch.full_like(one.score, one.chance), atol=0.02)


def test_series_as_tokens_and_models_without_heads_are_refused() -> None:
    assert "over the patches" in Induction().refusal(tiny_model("itransformer"))
    assert "no attention heads" in Induction().refusal(tiny_model("ttm"))
    assert Induction().refusal(tiny_model("chronos2")) == ""


def test_token_scores_of_chronos_t5() -> None:
    from tsprune.lens._repeatedtokens import RepeatedTokens, token_scores

    model: Any = tiny_model("chronos_t5")
    tokens = RepeatedTokens.of(model, 0)
    assert tokens is not None
    assert torch.equal(tokens.ids[:, tokens.place], tokens.pattern[:, 1])
    assert torch.equal(tokens.ids[:, -1], tokens.pattern[:, 0])
    scores, votes = token_scores(model, tokens)
    # What the heads add sums to what the branch adds: so the votes of a single head are those of the branch.
    path = next(iter(scores))
    attention = model.get_submodule(path)
    seen: list[Tensor] = []
    handle = attention.register_forward_hook(lambda _, __, out: seen.append(out[:, -1]))
    with torch.no_grad():
        tokens.states(model)
        handle.remove()
        with torch.no_grad():
            attention.o.weight[:, attention.gate.owners != 0] = 0
    only, kept = token_scores(model, tokens)
    assert torch.allclose(kept[path][0], votes[path][0], atol=1e-5)
    assert scores[path].prefix.shape == (attention.heads,)
    assert bool((only[path].score <= 1 + 1e-6).all())


def test_passes_of_induction() -> None:
    model = Copier()
    calls, counted = [0], study(model, [noisy(rows=16)])
    forward = model.forward

    def watched(context: Tensor) -> Tensor:
        calls[0] += len(context)
        return forward(context)

    model.forward = watched  # type: ignore[method-assign]
    Induction().run(counted, quiet)
    assert calls[0] / 16 == Induction().passes(counted)


# ---- the indices


def test_a_copy_has_index_1_and_the_unrelated_a_low_one() -> None:
    batch = noisy()
    copy = Parroting(heads=False).run(study(Fixed(lambda b, h: b.context[:, 7 : 7 + h]), [batch], horizon=12), quiet)
    assert copy.facts["parroting"]["estimate"] == pytest.approx(1)
    assert copy.facts["parroting_excess"]["low"] > 0
    assert "more than" in copy.answer
    unrelated = Fixed(lambda b, h: 3 * torch.randn(b.rows, h, generator=torch.Generator().manual_seed(9)))
    other = Parroting(heads=False).run(study(unrelated, [batch], horizon=12), quiet)
    assert other.facts["parroting"]["estimate"] < 0
    parrot = copy.facts["indices"]["parrot"][0]["estimate"]
    assert other.facts["indices"]["what came"][0]["estimate"] < parrot <= 1


def test_index_against_plain_loops() -> None:
    draw = np.random.default_rng(0)
    context, forecast = draw.normal(size=(3, 30)), draw.normal(size=(3, 6))
    context[1, 4] = np.nan
    counted = np.ones((3, 6), bool)
    counted[2, 1] = False
    spread = np.nanstd(context, axis=1)
    found = _parrots.parroting(forecast, context, spread, counted)
    for row in range(3):
        errors = []
        for start in range(30 - 6 + 1):
            piece = context[row, start : start + 6]
            if not np.isnan(piece).any():
                steps = counted[row]
                errors.append(np.sqrt(np.mean((forecast[row] - piece)[steps] ** 2)))
        assert found[row] == pytest.approx(1 - min(errors) / spread[row])
    assert np.isnan(_parrots.parroting(np.zeros((1, 9)), np.zeros((1, 4)), np.ones(1), np.ones((1, 9), bool))[0])


def test_a_seasonal_forecast_of_a_future_without_season_is_biased() -> None:
    batch = seasonal()
    found = Parroting(heads=False).run(study(Fixed(lambda b, h: b.context[:, 64 - h :]), [batch], horizon=32), quiet)
    assert found.facts["seasonality_bias"]["low"] > 0.5
    flat = Parroting(heads=False).run(
        study(Fixed(lambda b, h: b.context[:, -1:].expand(-1, h)), [batch], horizon=32), quiet
    )
    assert flat.facts["seasonality_bias"]["estimate"] < 0


@pytest.mark.parametrize("period", [5.0, 8.0, 12.7])
def test_the_period_is_found_beside_a_trend(period: float) -> None:
    time = np.arange(96.0)
    context = (np.sin(2 * np.pi * time / period) + 0.5 * time)[None]
    context[0, 10:12] = np.nan
    assert _parrots.dominant_period(context, 24)[0] == pytest.approx(period, rel=0.05)
    assert np.isnan(_parrots.dominant_period(np.full((1, 96), 3.0), 24)[0])
    wave = np.sin(2 * np.pi * np.arange(24.0) / period)[None] + 7
    counted = np.ones((1, 24), bool)
    assert _parrots.season_share(wave, np.array([period]), counted)[0] == pytest.approx(1)
    assert _parrots.season_share(0 * wave + 7, np.array([period]), counted)[0] == 0


def test_the_parrot_goes_on_with_what_repeats() -> None:
    values = waves(1, 20, seed=1).double().repeat(1, 5).numpy()
    found = _parrots.repeated(values[:, :80], 20)
    # Four copies and the fifth nearest, which weighs exp(-1/2).
    assert np.corrcoef(found[0], values[0, 80:])[0, 1] > 0.9
    exact = np.tile(np.arange(7.0), 20)[None]
    assert np.allclose(_parrots.repeated(exact[:, :126], 14), exact[:, 126:140])
    assert np.isnan(_parrots.repeated(np.zeros((1, 20)), 3)).all()


def test_passes_of_parroting() -> None:
    model, batch = Copier(), noisy(horizon=PATCH)
    counted, calls = study(model, [batch], [batch], horizon=PATCH), [0]
    predict = model.predict

    def watched(batch: Batch, steps: int) -> Tensor:
        calls[0] += 1
        return predict(batch, steps)

    model.predict = watched  # type: ignore[method-assign]
    Parroting().run(counted, quiet)
    assert calls[0] == Parroting().passes(counted) == 1 + 6 + 1 + 6
    assert Parroting(heads=False).passes(counted) == 1


def test_gaps_and_groups_are_read_row_by_row() -> None:
    found = lens.find("parroting").run(study(tiny_model("ttm"), [tiny_batch()]), quiet)
    assert found.facts["parroting"]["estimate"] is not None
    constant = Batch(torch.ones(2, 40), torch.ones(2, 8))
    nothing = Parroting(heads=False).run(study(Fixed(lambda b, h: torch.ones(b.rows, h)), [constant], horizon=8), quiet)
    assert nothing.facts["parroting"]["estimate"] is None and "2 of 2 rows" in " ".join(nothing.notes)
