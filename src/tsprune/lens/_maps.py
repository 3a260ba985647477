"""Attention weights as a model computes them on windows, seen one call at a time and never all at once.

Letters: B rows of a call, H heads, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tsprune.blocks.attention import Attention, Watch
from tsprune.data.batch import Batch
from tsprune.lens._heads import attentions
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import frozen
from tsprune.scores._work import count_windows, split_windows, totals_over

ENTRIES = 2**26
"""Attention weights of one call that are held at once, unless one window alone has more: 256 MiB in float32."""


@dataclass(frozen=True)
class AttentionMap:
    """What one attention weighed in one call, after the softmax.

    Attributes:
        weights: `[B, H, T, S]`, without gradient; of no meaning where a key is not live.
        live: bool `[B, T, S]`, keys that a query may attend to.
        counted: bool `[B, T]`, queries that count: tokens that the model does not hide from all others, and in
            cross-attention every query.
        crossing: whether keys are not the queries' own tokens.
    """

    weights: Tensor
    live: Tensor
    counted: Tensor
    crossing: bool


See = Callable[[str, AttentionMap], None]


@contextmanager
def watching(model: Forecaster, see: See) -> Iterator[None]:
    """Show the maps of every attention of a model, with its path; what watched before is back afterwards."""
    places = attentions(model)
    before = {path: attention.watch for path, attention in places.items()}
    with ExitStack() as stack:
        try:
            for path, attention in places.items():
                crossing: set[str] = set()
                handle = attention.register_forward_pre_hook(partial(_notice, crossing), with_kwargs=True)
                stack.callback(handle.remove)
                attention.watch = _shown(path, crossing, see)
            yield
        finally:
            for path, attention in places.items():
                attention.watch = before[path]


def _notice(crossing: set[str], _: Attention, __: tuple[Any, ...], named: dict[str, Any]) -> None:
    crossing.clear()
    if named.get("memory") is not None:
        crossing.add("memory")


def _shown(path: str, crossing: set[str], see: See) -> Watch:
    def watch(weights: Tensor, _: Tensor, __: Tensor, live: Tensor | None) -> None:
        rows, queries, keys = len(weights), *weights.shape[2:]
        if live is None:
            live = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=weights.device)
        allowed = live[:, 0].expand(rows, queries, keys)
        # Queries are the last of the tokens that are keys; a token that nobody may attend to is not read either.
        counted = allowed.any(-2)[:, keys - queries :] if not crossing else torch.ones_like(allowed[..., 0])
        see(path, AttentionMap(weights.detach(), allowed, counted, bool(crossing)))

    return watch


def map_sums(
    model: Forecaster, batches: Sequence[Batch], read: Callable[[str, AttentionMap], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What `read` makes of every map, summed over all windows by name, in one forward pass.

    Args:
        model: left as it was found.
        batches: windows with targets, in portions whose maps fit into memory.
        read: from path and map to sums, always of one shape for one name.

    Raises:
        TspruneError: no window at all.
    """

    def step(portion: Batch) -> tuple[dict[str, Tensor], int]:
        found: dict[str, Tensor] = {}

        def see(path: str, seen: AttentionMap) -> None:
            for name, values in read(path, seen).items():
                found[name] = found[name] + values if name in found else values

        with frozen(model), torch.no_grad(), watching(model, see):
            model.loss(portion)
        return found, count_windows(portion)

    return totals_over(model, batches, step).result()[0]


def in_portions(model: Forecaster, batches: Sequence[Batch], entries: int = ENTRIES) -> list[Batch]:
    """The batches in portions of which no attention has more than so many weights at once, at least one window each.

    The first window is passed through the model to see how many it makes.
    """
    if not batches:
        return []
    most = 1

    def see(_: str, seen: AttentionMap) -> None:
        nonlocal most
        most = max(most, seen.weights.numel())

    with frozen(model), torch.no_grad(), watching(model, see):
        model.loss(split_windows(batches[0], 1)[0].to(model.device))
    return [part for batch in batches for part in split_windows(batch, max(1, entries // most))]
