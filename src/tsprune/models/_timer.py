"""What the Timer decoders share: whole tokens of a context, the loss of the next ones, the roll-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsprune.blocks.across import Groups
from tsprune.blocks.attention import Rotary
from tsprune.blocks.branch import Layer
from tsprune.blocks.patching import InstanceScale, fill_gaps, left_fill, right_fill
from tsprune.blocks.rowscale import RowScale
from tsprune.blocks.tracing import newest, picked, tracing
from tsprune.blocks.variates import OneSequence, one_sequence
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._forecaster import Forecaster, window_index
from tsprune.models._rollout import as_given, unrounded


class DecoderLayer(Layer):
    """Self-attention and feed-forward, each with its norm on the sum."""

    def forward(self, x: Tensor, **inputs: Any) -> Tensor:
        """`[W, S, D]` in and out; further inputs go to the attention."""
        attention, feed = self.branches
        out: Tensor = feed(attention(x, **inputs))
        return out


class Network(NamedTuple):
    """The parts of the network, whatever the checkpoint calls them."""

    embedding: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    heads: Sequence[nn.Module]


@dataclass(frozen=True)
class Past:
    """What the network sees of each row.

    Args:
        tokens: `[B, T, P]`, as they enter the embedding; 0 where there is nothing.
        live: bool `[B, T]`, False for tokens that begin before the row's history.
        observed: `[B, T * P]`, original units, NaN = missing: what earlier tokens are to forecast.
        scale: of the values in live tokens.
    """

    tokens: Tensor
    live: Tensor
    observed: Tensor
    scale: InstanceScale


@dataclass(frozen=True)
class Windows:
    """Which rows share a window.

    Args:
        groups: the rows of each window, in the order in which they stand in its sequence.
        readers: bool `[W, M]`, see `one_sequence`, or None.
    """

    groups: Groups
    readers: Tensor | None


class TokenDecoder(Forecaster):
    """A decoder that reads tokens of `patch` steps and forecasts, at each, the steps that come next.

    The context is cut into whole tokens from its end; what is left over at its beginning is not used. A row whose
    history is shorter than a token has its mean in front. The row's own values in whole tokens set its scale.

    Args:
        config: the public config; its `input_token_len` is the token's length.
        lengths: steps that each output head gives.
        context: most steps of context, at least one token.
    """

    objectives = ("own", "mse")
    normalises = True
    """Whether the network sees standardised values."""
    covariate = False
    """Whether the target of a window reads the other series, and these only themselves."""

    def __init__(self, config: Mapping[str, Any], lengths: Sequence[int], context: int) -> None:
        super().__init__()
        self.config = dict(config)
        self.levels = (0.5,)
        self.patch = entry(config, "input_token_len", int, self.family)
        if self.patch < 1 or not lengths or min(lengths) < 1:
            raise TspruneError(
                f"config.json: input_token_len {self.patch} and output token lengths {list(lengths)} must be positive"
            )
        self.lengths = tuple(lengths)
        self.native_horizon = max(lengths)
        self.context_length = max(1, context // self.patch) * self.patch

    @property
    def network(self) -> Network:
        """The parts of the network."""
        raise TspruneError(f"{type(self).__name__} does not say what its parts are called")

    def rotary(self, positions: Tensor) -> Rotary:
        """The rotary table of tokens at these positions."""
        raise TspruneError(f"{type(self).__name__} does not say how its positions turn")

    def forward(self, tokens: Tensor, sequence: OneSequence) -> Tensor:
        """The last hidden states.

        Args:
            tokens: `[W, S, P]`, standardised, the series of a window behind each other.
            sequence: how they are laid out, see `one_sequence`.

        Returns:
            `[W, S, D]`, after the final norm; every head reads them.
        """
        network, rotary = self.network, self.rotary(sequence.positions)
        x = network.embedding(tokens.to(self.dtype))
        for layer in network.layers:
            x = layer(x, mask=sequence.mask, causal=sequence.causal, rotary=rotary, buckets=sequence.same)
        out: Tensor = network.norm(x)
        return out

    def head_for(self, steps: int) -> int:
        """Number of the head for the next of `steps` steps: the last in order before one that is too long."""
        chosen = 0
        for number, length in enumerate(self.lengths):
            if number and length > steps:
                break
            chosen = number
        return chosen

    def instance_scale(self, values: Tensor) -> InstanceScale:
        """Location and scale of rows `[B, L]`, NaN = nothing there."""
        return InstanceScale(values)

    def read(self, context: Tensor) -> Past:
        """Cut a context `[B, L]`, NaN = missing, into tokens that end with it."""
        size = self.patch
        context = newest(context, self.context_length)
        observed = _whole_tokens(context, size)
        values = _whole_tokens(fill_gaps(context), size).unfold(-1, size, size)
        there = ~torch.isnan(values)
        live = torch.cat([there[:, :-1].all(-1), there[:, -1:].any(-1)], dim=1)
        values = torch.where(live[..., None], values, torch.nan).flatten(1)
        scale = self.instance_scale(values)
        tokens = scale.apply(values) if self.normalises else values.to(scale.location.dtype)
        return Past(torch.nan_to_num(tokens, nan=0.0).view(*live.shape, size), live, observed, scale)

    def windows(self, batch: Batch) -> Windows | None:
        """Which rows share a window, or None when the network sees every row alone.

        With `covariate`, the targets of a window come last and read its other rows; where all are targets, the last
        one is taken for the target, as in the original code.
        """
        if not self.capabilities.multivariate or batch.group_ids is None:
            return None
        window = window_index(batch)
        if not self.covariate:
            return Windows(Groups.of(window), None)
        wanted = torch.ones_like(window, dtype=torch.bool) if batch.is_target is None else batch.is_target
        order = torch.argsort(wanted.int(), stable=True)
        groups = Groups.of(window[order])
        members, place = order[groups.members], torch.empty_like(groups.place)
        place[order] = groups.place
        number = torch.arange(members.shape[1], device=members.device)
        last = number == groups.present.sum(1, keepdim=True) - 1
        helped = (groups.present & ~wanted[members]).any(1, keepdim=True)
        readers = groups.present & torch.where(helped, wanted[members], last)
        return Windows(Groups(members, groups.present, place), readers)

    def states(self, past: Past, windows: Windows | None) -> Tensor:
        """Last hidden states of each row `[B, T, D]`."""
        if windows is None:
            rows: Tensor = self(past.tokens, one_sequence(past.live[:, None]))
            return rows
        groups = windows.groups
        live = past.live[groups.members] & groups.present[..., None]
        hidden: Tensor = self(past.tokens[groups.members].flatten(1, 2), one_sequence(live, windows.readers))
        return hidden.view(-1, live.shape[2], hidden.shape[-1])[groups.place]

    def row_losses(self, batch: Batch) -> Tensor:
        """Mean squared error of what tokens forecast, on the instance scale (see `RowScale`), averaged over the heads.

        By `own`, that of every token of the context, as in pretraining; by `mse`, that of the last one, which
        forecasts the target. Missing values do not count, nor does a row without any target.

        Args:
            batch: with a target of at most the native horizon.

        Returns:
            `[B]`.
        """
        asked = self.wanted(batch)
        past = self.read(batch.context)
        hidden, scale = self.states(past, self.windows(batch)), past.scale
        target = right_fill(asked, self.native_horizon, float("nan"))
        series = scale.apply(torch.cat([past.observed, target.to(past.observed.dtype)], dim=1))
        counted = past.live.clone() if self.objective == "own" else torch.zeros_like(past.live)
        counted[:, -1] = True
        counted &= ~torch.isnan(asked).all(1, keepdim=True)
        total, heads = torch.zeros_like(series[:, 0]), torch.zeros_like(series[:, 0])
        for head, length in zip(self.network.heads, self.lengths, strict=True):
            wanted = series[:, self.patch : past.observed.shape[1] + length].unfold(-1, length, self.patch)
            held = ~torch.isnan(wanted) & counted[..., None]
            given = head(hidden).to(series.dtype)
            if not self.normalises:
                given = scale.apply(given.flatten(1)).view_as(given)
            errors = torch.where(held, given - torch.nan_to_num(wanted), torch.zeros_like(given)).square()
            number = held.sum((1, 2))
            total = total + errors.sum((1, 2)) / number.clamp(min=1)
            heads = heads + (number > 0)
        # On its own scale, near 0, a constant row would rule every mean.
        robust = RowScale.of(past.observed, ~torch.isnan(past.observed)).scale
        share = torch.where(robust > 2 * scale.scale, scale.scale / robust, torch.ones_like(robust))[:, 0]
        return total / heads.clamp(min=1) * share.square()

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Forecasts `[B, 1, steps]`; what is forecast joins the context, whose statistics are taken anew."""
        self.check_batch(batch)
        context, windows = fill_gaps(newest(unrounded(batch.context), self.context_length)), self.windows(batch)
        blocks: list[Tensor] = []
        while (left := steps - sum(block.shape[1] for block in blocks)) > 0:
            past = self.read(context)
            out = self.network.heads[self.head_for(left)](self.states(past, windows)[:, -1])
            out = out.to(past.scale.location.dtype)
            block = past.scale.invert(out[:, None])[:, 0] if self.normalises else out
            blocks.append(block)
            context = newest(torch.cat([context, block], dim=1), self.context_length)
        return as_given(torch.cat(blocks, dim=1)[:, None, :steps], batch.context)


def _whole_tokens(x: Tensor, size: int) -> Tensor:
    """What fills whole tokens at the end of `[B, L]`; what is shorter than a token has NaN in front."""
    if tracing():
        whole = torch.sym_max(1, x.shape[1] // size) * size  # type: ignore[no-untyped-call]
        return picked(nn.functional.pad(x, (size, 0), value=torch.nan), whole)
    extra = x.shape[1] % size if x.shape[1] > size else 0
    return left_fill(x[:, extra:], size)
