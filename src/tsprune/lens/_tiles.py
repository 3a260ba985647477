"""Where heads look in a context of random patches that repeat, for models whose tokens are patches of values.

Letters: B rows, H heads, T queries, S keys, n patches of the context, s patches of the pattern, r repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsprune.blocks.attention import Attention, Watch
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.lens._ablating import groups_of
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import frozen

ROWS = 16
LONGEST, SHORTEST, REPEATS = 8, 3, 4
SHARE = 0.05
"""Of the largest effect on a token, and on any, what counts as one: a token of the forecast may hold a mean of what
came before, which rounding moves."""


@dataclass(frozen=True)
class Tiles:
    """A pattern of random patches, drawn anew for each row, that repeats.

    Args:
        patch: steps of a patch.
        pattern: patches s before it repeats.
        repeats: how often r it stands in the context.
        values: `[B, (r + 1) * s * patch]`, float32: context and what comes next.
    """

    patch: int
    pattern: int
    repeats: int
    values: Tensor

    @classmethod
    def sizes(cls, model: Forecaster) -> tuple[int, int] | None:
        """Patches of the pattern and repeats: up to 4 times 8, as the context allows; None if it is too short."""
        room = model.context_length // model.patch
        repeats = REPEATS if room // REPEATS >= SHORTEST else 2
        pattern = min(LONGEST, room // repeats)
        return (pattern, repeats) if pattern >= SHORTEST else None

    @classmethod
    def of(cls, model: Forecaster, seed: int, rows: int = ROWS) -> Tiles:
        """For the model's own patch, values independent and standard normal."""
        sizes = cls.sizes(model)
        if sizes is None:
            raise TspruneError(
                f"a context of {model.context_length} steps holds no pattern of patches of {model.patch} twice; choose "
                "a model with a longer context"
            )
        draw = torch.Generator().manual_seed(seed)
        pattern = torch.randn(rows, sizes[0] * model.patch, generator=draw)
        return cls(model.patch, *sizes, pattern.repeat(1, sizes[1] + 1))

    @property
    def patches(self) -> int:
        """Patches of the context n."""
        return self.pattern * self.repeats

    @property
    def context(self) -> Tensor:
        """`[B, n * patch]`."""
        return self.values[:, : self.patches * self.patch]

    @property
    def future(self) -> Tensor:
        """`[B, s * patch]`."""
        return self.values[:, self.patches * self.patch :]

    def batch(self, model: Forecaster) -> Batch:
        """The context on the model's device."""
        return Batch(self.context.to(model.device))


@dataclass(frozen=True)
class HeadScores:
    """Where the heads of one attention look, means over rows and queries, `[H]` each.

    Args:
        score: weight on all earlier patches that hold what comes next: a head that finds copies by what they hold
            shares its weight among them.
        prefix: the same for the last of them alone, as in the source.
        match: weight on the last earlier occurrence of what was seen last, which is just before.
        chance: `score` of even weights.
        how: who asks: `order` tokens of the context in causal attention, `forecast` tokens that make the forecast,
            `context` tokens of the context that see the later ones as well.
    """

    score: Tensor
    prefix: Tensor
    match: Tensor
    chance: float
    how: str


Seen = tuple[Tensor, Tensor, Tensor | None]
"""Weights `[B, H, T, S]`, values `[B, H, S, V]`, live keys as `tsprune.blocks.attention.Watch` gets them."""


def mapping_rows(model: Forecaster) -> int:
    """Rows that `token_patches` takes one forward pass over."""
    sizes = Tiles.sizes(model)
    return 0 if sizes is None else sizes[0] * sizes[1] + (model.patch > 1)


def token_patches(model: Forecaster) -> tuple[list[int], str]:
    """Which patch of the context each key of the first attention over time stands for, -1 for none; or why not.

    Found by changing one patch at a time so that mean and spread of the row stay, and its last value, which some
    models hold: what lies inside in reverse order, or, where a patch is one value, exchanged with the next. Only
    tokens of that patch then change on their way in. Every patch must be one token, in order, and later tokens must
    not depend on it yet.
    """
    if Tiles.sizes(model) is None:
        return [], f"a context of {model.context_length} steps holds fewer than {2 * SHORTEST} patches of {model.patch}"
    tiles = Tiles.of(model, seed=0, rows=1)
    patches, steps = tiles.patches, tiles.patch
    # No repetition here: a patch must not meet its copy.
    # Rising within patches, or up and down between single values, so that every change is felt.
    shape = torch.linspace(-1, 1, steps) if steps > 1 else 1 - 2 * (torch.arange(patches) % 2)[:, None]
    base = shape + 0.2 * torch.randn(patches, steps, generator=torch.Generator().manual_seed(1))
    changed = [base]
    for number in range(patches if steps > 1 else patches - 1):
        other = base.clone()
        if steps > 1:
            inner = slice(1, -1) if steps > 3 else slice(None)
            other[number, inner] = base[number, inner].flip(0)
        else:
            other[[number, number + 1]] = base[[number + 1, number]]
        changed.append(other)
    context = torch.stack([one.flatten() for one in changed]).to(model.device)
    seen = next((one for one in _watched(model, Batch(context), steps).values() if _fits(one, context, patches)), None)
    if seen is None:
        return [], "none of its attentions runs over the patches of a series"
    effects = (seen[1][1:] - seen[1][:1]).abs().amax((1, 3)).double().cpu()
    top = effects.amax()
    found = []
    for effect in effects.T:
        hit = (
            set(torch.nonzero(effect > SHARE * effect.amax())[:, 0].tolist()) if effect.amax() > SHARE * top else set()
        )
        found.append(_patch_of(hit, patches, swapped=steps == 1))
    if [patch for patch in found if patch >= 0] != list(range(patches)) or -2 in found:
        return [], f"its tokens do not stand for single patches of {steps} steps"
    return found, ""


def head_scores(model: Forecaster, tiles: Tiles, tokens: list[int]) -> dict[str, HeadScores]:
    """Scores by path of the attention; those that do not run over the patches are left out."""
    batch = tiles.batch(model)
    over = {
        path: seen
        for path, seen in _watched(model, batch, tiles.patch).items()
        if _fits(seen, batch.context, tiles.patches) and seen[0].shape[-1] == len(tokens)
    }
    # Where a decoder asks the context, what attends within the context only reads it.
    decoder = any(seen[0].shape[-2] != seen[0].shape[-1] for seen in over.values())
    return {path: _scores(model, tiles, tokens, seen, reads=decoder) for path, seen in over.items()}


def errors(model: Forecaster, tiles: Tiles) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """RMSE of the median forecast of what comes next, in standard deviations of the context: `[B]`."""
    steps = min(tiles.future.shape[1], model.native_horizon)
    forecast = model.forecast(tiles.batch(model), steps, (0.5,))[:, 0].double().cpu()
    apart = (forecast - tiles.future[:, :steps].double()).square().mean(1).sqrt()
    found: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (apart / tiles.context.double().std(1)).numpy()
    return found


def _patch_of(hit: set[int], patches: int, swapped: bool) -> int:
    """The patch of a token by the changes that reach it; -1 for none, -2 for several."""
    if not hit:
        return -1
    if not swapped:
        return hit.pop() if len(hit) == 1 else -2
    # Value p takes part in the exchanges p - 1 and p.
    patch = max(hit) if max(hit) < patches - 2 or len(hit) == 2 else patches - 1
    return patch if hit == {patch - 1, patch} & set(range(patches - 1)) else -2


def _fits(seen: Seen, context: Tensor, patches: int) -> bool:
    return seen[0].shape[0] == len(context) and seen[0].shape[-1] >= patches


def _scores(model: Forecaster, tiles: Tiles, tokens: list[int], seen: Seen, *, reads: bool) -> HeadScores:
    weights, _, live = seen
    weights = weights.double().cpu()
    queries, keys = weights.shape[-2:]
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    if live is not None:
        allowed = live[0, 0].cpu().expand(queries, keys)
    place = {int(patch): key for key, patch in enumerate(tokens) if patch >= 0}
    own = queries == keys
    first = place[0]
    causal = own and not bool(allowed[first:, first:].triu(1).any())
    ahead = 1
    if causal or (own and (reads or place[tiles.patches - 1] == keys - 1)):
        how = "order" if causal else "context"
        asking = {place[patch]: patch for patch in range(tiles.patches - tiles.pattern, tiles.patches)}
    else:
        # The last query makes the (last) forecast; one alone makes all of it.
        how, asking = "forecast", {queries - 1: tiles.patches - 1}
        if queries == 1:
            ahead = min(tiles.pattern, max(1, model.native_horizon // tiles.patch))
    prefix, match, copies, chance = [], [], [], []
    for query, last in asking.items():
        nexts = [last - tiles.pattern + 1 + step for step in range(ahead)]
        earlier = [p - back * tiles.pattern for p in nexts for back in range(tiles.repeats)]
        row = weights[:, :, query].mean(0)
        prefix.append(row[:, [place[p] for p in nexts]].sum(-1))
        match.append(row[:, place[last - tiles.pattern]])
        copies.append(row[:, [place[p] for p in earlier if p >= 0]].sum(-1))
        chance.append(sum(p >= 0 for p in earlier) / int(allowed[query].sum()))
    means = [torch.stack(values).mean(0) for values in (copies, prefix, match)]
    return HeadScores(means[0], means[1], means[2], float(np.mean(chance)), how)


def _watched(model: Forecaster, batch: Batch, steps: int) -> dict[str, Seen]:
    """What every attention does the first time that it runs, in the order in which they run."""
    paths = [group.path for group in groups_of(model, "head").values()]
    found: dict[str, Seen] = {}
    attentions = {path: model.get_submodule(path) for path in paths}
    with frozen(model), _watching(attentions, found):
        model.forecast(batch, steps)
    return found


@contextmanager
def _watching(attentions: Mapping[str, torch.nn.Module], found: dict[str, Seen]) -> Iterator[None]:
    def watch_of(path: str) -> Watch:
        def watch(weights: Tensor, values: Tensor, mixed: Tensor, live: Tensor | None) -> None:
            if path not in found:
                found[path] = weights.detach(), values.detach(), live

        return watch

    own = {path: attention for path, attention in attentions.items() if isinstance(attention, Attention)}
    before = {path: attention.watch for path, attention in own.items()}
    try:
        for path, attention in own.items():
            attention.watch = watch_of(path)
        yield
    finally:
        for path, attention in own.items():
            attention.watch = before[path]
