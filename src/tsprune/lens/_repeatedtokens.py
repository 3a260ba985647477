"""Repeated random tokens for Chronos-T5: where cross-attention heads look, and which token they vote for.

Letters: B rows, S tokens of the context, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tsprune.blocks.attention import Attention
from tsprune.blocks.gate import Probe, Rows, gates_set
from tsprune.lens._tiles import HeadScores, _watching
from tsprune.models.chronos_t5 import ChronosT5
from tsprune.scores._taps import frozen

ROWS, LONGEST, REPEATS = 32, 16, 4
AROUND_ZERO = 277 / 4093
"""Share of the bins, around zero, that tokens are drawn from: ids 1911 to 2187 of 4,093 bins."""


@dataclass(frozen=True)
class RepeatedTokens:
    """Token ids `pattern * repeats, first of the pattern` and what the decoder is told.

    Args:
        pattern: random ids `[B, s]`, all different within a row.
        repeats: how often it stands in the context.
    """

    pattern: Tensor
    repeats: int

    @classmethod
    def of(cls, model: ChronosT5, seed: int) -> RepeatedTokens | None:
        """Patterns of up to 16 tokens, four times; None where the context or the vocabulary holds fewer than 3."""
        bins = model.bins
        pool = min(bins.bins, max(LONGEST, round(AROUND_ZERO * bins.bins)))
        size = min(LONGEST, pool, (model.context_length - 1) // REPEATS)
        if size < 3:
            return None
        first = bins.special + 1 + (bins.bins - pool) // 2
        draw = torch.Generator().manual_seed(seed)
        rows = torch.stack([torch.randperm(pool, generator=draw)[:size] for _ in range(ROWS)])
        return cls((rows + first).to(model.device), REPEATS)

    @property
    def ids(self) -> Tensor:
        """The context `[B, s * r + 1]`; its end stands one token into the pattern."""
        return torch.cat([self.pattern.repeat(1, self.repeats), self.pattern[:, :1]], dim=1)

    @property
    def place(self) -> int:
        """Where the last earlier occurrence of the pattern's second token stands."""
        return self.pattern.shape[1] * (self.repeats - 1) + 1

    def states(self, model: ChronosT5) -> Tensor:
        """Decoder states `[B, D]` after the start and the second token of the pattern, which ask for the third."""
        ids = model.bins.with_end(self.ids)
        buckets = model.parts.distances(ids.shape[1], ids.device, bidirectional=True)
        memory = model.encoder(model.shared(ids), None, buckets)
        told = F.pad(self.pattern[:, 1:2], (1, 0), value=model.start)
        earlier = torch.ones(2, 2, dtype=torch.bool, device=ids.device).tril()[None, None]
        near = model.parts.distances(2, ids.device, bidirectional=False)
        found: Tensor = model.decoder(model.shared(told), memory, None, earlier, near)[:, -1]
        return found

    def surprise(self, model: ChronosT5) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """-log p of the pattern's third token, in nats `[B]`."""
        with frozen(model), torch.no_grad():
            logits = model._logits(self.states(model)).double()
        found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (
            F.cross_entropy(logits, self.pattern[:, 2], reduction="none").cpu().numpy()
        )
        return found


def token_scores(model: ChronosT5, tokens: RepeatedTokens) -> tuple[dict[str, HeadScores], dict[str, Tensor]]:
    """Scores of cross-attention heads by path, and their copy scores `[H]`.

    The copy score is the z-score over the vocabulary of the third token's logit in what the head alone adds to the
    stream, passed through the final norm and the head of the model, at the last position; a mean over rows.
    """
    paths = [path for group in model.essential() for path in group]
    attentions = {path: found for path in paths if isinstance(found := model.get_submodule(path), Attention)}
    attentions = {path: found for path, found in attentions.items() if found.heads}
    seen: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Probe:
        def probe(values: Tensor, _: Rows | None) -> None:
            outputs[path] = values[:, -1].detach()

        return probe

    probes = {found.gate: keep(path) for path, found in attentions.items()}
    with frozen(model), torch.no_grad(), gates_set("probe", probes), _watching(attentions, seen):
        tokens.states(model)
    scores = {path: _looked(seen[path][0][:, :, -1].double().cpu(), tokens) for path in attentions}
    with frozen(model), torch.no_grad():
        votes = {path: _votes(model, found, outputs[path], tokens) for path, found in attentions.items()}
    return scores, votes


def _looked(weights: Tensor, tokens: RepeatedTokens) -> HeadScores:
    """Scores from the weights `[B, H, S]` of the last query."""
    size, place = tokens.pattern.shape[1], tokens.place
    mean = weights.mean(0)
    copies = mean[:, [place + 1 - back * size for back in range(tokens.repeats)]].sum(-1)
    return HeadScores(copies, mean[:, place + 1], mean[:, place], tokens.repeats / weights.shape[-1], "forecast")


def _votes(model: ChronosT5, attention: Attention, values: Tensor, tokens: RepeatedTokens) -> Tensor:
    """Copy scores `[H]` from head outputs `[B, H * V]`."""
    owner = attention.gate.owners.to(values.device)
    found = []
    for head in range(attention.heads):
        own = values * (owner == head)
        logits = model._logits(model.decoder.final_layer_norm(own @ attention.o.weight.T)).double()
        wanted = logits.gather(-1, tokens.pattern[:, 2:3])[:, 0]
        found.append(((wanted - logits.mean(-1)) / logits.std(-1).clamp(min=1e-12)).mean())
    return torch.stack(found).cpu()
