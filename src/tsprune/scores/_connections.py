"""Derivatives of the loss with respect to masks on attention weights, from one backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from tsprune.blocks.attention import Attention, Watch
from tsprune.blocks.branch import Branch
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._masking import open_units
from tsprune.scores._taps import frozen
from tsprune.scores._work import Totals, count_windows, totals_over

Effects = tuple[Tensor, Tensor, Tensor]
"""Mean S `[H, T, S]` float64, live keys bool `[T, S]`, queries that count bool `[T]`."""


def connection_sums(model: Forecaster, batches: Iterable[Batch], paths: Sequence[str]) -> Totals:
    """Derivatives of the loss with respect to a mask on every attention weight, summed over all windows.

    By S = A * <g, v>, with g the gradient at the head outputs, no gradient of the weights is ever formed. Sums are
    named `path|what|T|S`, since maps of different sizes stay apart at first.

    Args:
        model: left as it was found.
        batches: windows with targets.
        paths: of attentions, or of the branches they are in.
    """
    attentions = {path: attention for path in paths if (attention := _attention(model, path)) is not None}

    def step(portion: Batch) -> tuple[dict[str, Tensor], int]:
        maps = _Maps()
        with frozen(model), torch.enable_grad(), maps.watching(attentions):
            losses = model.loss(portion)
            # Without any head left nothing depends on the watched tensors.
            if losses.requires_grad:
                losses.sum().backward()  # type: ignore[no-untyped-call]
        return maps.found, count_windows(portion)

    return totals_over(model, batches, step)


def mean_effects(model: Forecaster, totals: Totals, path: str) -> Effects | None:
    """One map for all windows of the attention at `path`; None if it never ran.

    Heads that are switched off are left out.

    Raises:
        TspruneError: no window at all.
    """
    sums, windows = totals.result()
    attention, maps = _attention(model, path), _laid_out(sums, path)
    if attention is None or not maps:
        return None
    return maps["effect"][_open_heads(attention)] / windows, maps["live"] > 0, maps["queries"] > 0


class _Maps:
    """Sums over the rows of a portion."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, attentions: Mapping[str, Attention]) -> Iterator[None]:
        crossing: set[str] = set()
        before = {path: attention.watch for path, attention in attentions.items()}
        with ExitStack() as stack:
            try:
                for path, attention in attentions.items():
                    handle = attention.register_forward_pre_hook(_notice(path, crossing), with_kwargs=True)
                    stack.callback(handle.remove)
                    attention.watch = self._watch(path, crossing)
                yield
            finally:
                for path, attention in attentions.items():
                    attention.watch = before[path]

    def _watch(self, path: str, crossing: set[str]) -> Watch:
        def watch(weights: Tensor, values: Tensor, mixed: Tensor, live: Tensor | None) -> None:
            if not mixed.requires_grad:
                # With frozen weights, this is where the graph begins.
                mixed.requires_grad_(True)
            length, keys = weights.shape[-2:]
            size = f"{length}|{keys}"
            weights, values = weights.detach(), values.detach()
            everywhere = weights.new_ones(length, keys, dtype=torch.float64)
            allowed = everywhere if live is None else live.sum((0, 1), dtype=torch.float64).expand(length, keys)
            self._add(f"{path}|live|{size}", allowed)
            queries = allowed.new_ones(length) if path in crossing else allowed.sum(0)
            self._add(f"{path}|queries|{size}", queries)

            def collect(gradient: Tensor) -> None:
                g, v = (part if part.dtype == torch.float64 else part.float() for part in (gradient, values))
                effect = weights * (g @ v.transpose(-1, -2))
                if live is not None:
                    # A query without a live key weighs all keys alike, and is read by nobody.
                    effect = effect * live
                self._add(f"{path}|effect|{size}", effect.sum(0, dtype=torch.float64))

            mixed.register_hook(collect)  # type: ignore[no-untyped-call]

        return watch

    def _add(self, name: str, values: Tensor) -> None:
        self.found[name] = self.found[name] + values if name in self.found else values


def _attention(model: Forecaster, path: str) -> Attention | None:
    module = model.get_submodule(path)
    inner = module.inner if isinstance(module, Branch) else module
    return inner if isinstance(inner, Attention) and inner.heads else None


def _notice(path: str, crossing: set[str]) -> Any:
    """A hook that notes attention to something else than the own tokens."""

    def enter(_: Attention, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        if named.get("memory") is not None:
            crossing.add(path)

    return enter


def _open_heads(attention: Attention) -> Tensor:
    """bool `[H]`: heads that are not switched off, alone or with their key/value group."""
    groups = open_units(attention.group_gate)
    kv = torch.tensor(attention.shape.kv_of_head) if attention.group_gate is not None else torch.zeros(1).long()
    return open_units(attention.gate) & groups[kv]


def _laid_out(sums: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """The sums of one attention, smaller maps in the upper left corner of the largest; empty if it never ran."""
    effects = {name: values for name, values in sums.items() if name.startswith(f"{path}|effect|")}
    if not effects:
        return {}
    sizes = [tuple(int(part) for part in name.split("|")[-2:]) for name in effects]
    length, keys = (max(size[axis] for size in sizes) for axis in (0, 1))
    heads = len(next(iter(effects.values())))
    whole = {
        "effect": torch.zeros(heads, length, keys, dtype=torch.float64),
        "live": torch.zeros(length, keys, dtype=torch.float64),
        "queries": torch.zeros(length, dtype=torch.float64),
    }
    for own_length, own_keys in sizes:
        size = f"{own_length}|{own_keys}"
        whole["effect"][:, :own_length, :own_keys] += sums[f"{path}|effect|{size}"]
        whole["live"][:own_length, :own_keys] += sums[f"{path}|live|{size}"]
        whole["queries"][:own_length] += sums[f"{path}|queries|{size}"]
    return whole
