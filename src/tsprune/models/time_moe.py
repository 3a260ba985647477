"""Time-MoE (Maple728/TimeMoE-*): a decoder over single values with experts and an output head for each horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.experts import balance_loss, routings
from tsprune.blocks.keycache import KeyCache
from tsprune.blocks.patching import InstanceScale, fill_gaps
from tsprune.blocks.tracing import all_set, at_most, newest
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._forecaster import Capabilities, Checkpoint, Forecaster
from tsprune.models._fresh import fresh_weights
from tsprune.models._names import Renames
from tsprune.models._rollout import as_given, unrounded
from tsprune.models._time_moe_network import Decoder, OutputHead, keep_newest, mask_of, positions_of

HUBER = 2.0
"""Errors beyond this, on the instance scale, count linearly (2409.16040; the number stands in its code)."""
UNVERIFIED = "licence as its project states it; not verified here"


class Past(NamedTuple):
    """What the network sees of each row.

    Attributes:
        values: `[B, L]`, standardised, gaps filled, 0 where the row has not begun.
        seen: bool `[B, L]`, False where the row has not begun.
        own: bool `[B, L]`, False also where a gap was filled by what follows it.
        known: `[B, L]`, standardised, NaN = missing.
        scale: of the values.
    """

    values: Tensor
    seen: Tensor
    own: Tensor
    known: Tensor
    scale: InstanceScale


class TimeMoe(Forecaster):
    """The Time-MoE network, sparse or dense, under the tensor names of the public checkpoints.

    Every value is a token, at which several heads forecast what comes after it, each as many values as its horizon has
    steps. Rows that are shorter than the batch begin later: their positions count from their first value and nothing
    before it is looked at, so that they get what they get alone.

    Attributes:
        horizons: steps that each head gives, in the order of the config.
        reach: values that were in sight at once in pretraining; in a long forecast the oldest are left behind.
        balance: weight of the routers' balance loss, which is part of the loss in training only.
    """

    family = "time_moe"
    head_paths = ("lm_heads",)
    capabilities = Capabilities(missing_values=False, quantiles=False)
    checkpoints = (
        Checkpoint("Maple728/TimeMoE-50M", 113.35, "Apache-2.0", f"50M are used for any one value; {UNVERIFIED}"),
        Checkpoint("Maple728/TimeMoE-200M", 453.20, "Apache-2.0", f"200M are used for any one value; {UNVERIFIED}"),
    )
    pretraining_corpora = ("Time-300B",)
    names = Renames(
        [
            ("model.layers.*.self_attn.q_proj", "model.layers.*.layer.0.self_attn.q"),
            ("model.layers.*.self_attn.k_proj", "model.layers.*.layer.0.self_attn.k"),
            ("model.layers.*.self_attn.v_proj", "model.layers.*.layer.0.self_attn.v"),
            ("model.layers.*.self_attn.o_proj", "model.layers.*.layer.0.self_attn.o"),
            ("model.layers.*.input_layernorm", "model.layers.*.layer.0.layer_norm"),
            ("model.layers.*.post_attention_layernorm", "model.layers.*.layer.1.layer_norm"),
            *(
                (f"model.layers.*.ffn_layer{inner}.{public}", f"model.layers.*.layer.1.ffn_layer{inner}.{own}")
                for inner in ("", ".experts.*", ".shared_expert")
                for public, own in (("gate_proj", "wi_0"), ("up_proj", "wi_1"), ("down_proj", "wo"))
            ),
            ("model.layers.*.ffn_layer", "model.layers.*.layer.1.ffn_layer"),
        ]
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.levels = (0.5,)
        if (size := entry(config, "input_size", int, self.family, 1)) != 1:
            raise TspruneError(f"config.json: input_size is {size}, family {self.family} reads one value per step (1)")
        self.horizons = _horizons(config)
        self.native_horizon = max(self.horizons)
        self.reach = entry(config, "max_position_embeddings", int, self.family, 32768)
        self.context_length = self.reach - self.native_horizon
        if self.context_length < 1:
            raise TspruneError(
                f"config.json: max_position_embeddings {self.reach} must be more than the longest of "
                f"horizon_lengths, {self.native_horizon}"
            )
        self.model = Decoder(config, self.family)
        self.balance = _balance(config, self.family, sparse=self.model.experts > 0)
        self.lm_heads = nn.ModuleList(OutputHead(self.model.width, steps) for steps in self.horizons)
        fresh_weights(self, 1, len(self.model.layers))

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By its name, or by entries that no other family has together."""
        named = {config.get("model_type"), *(config.get("architectures") or [])} - {None}
        if named:
            return bool(named & {cls.family, "TimeMoeForPrediction"})
        return all(config.get(name) is not None for name in ("horizon_lengths", "hidden_size", "num_hidden_layers"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights (`initializer_range`, that of the original code, is not used)."""
        return cls(config)

    def forward(
        self,
        values: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: Sequence[KeyCache] | None = None,
    ) -> Tensor:
        """The states that every head reads.

        Args:
            values: `[B, T]`, standardised.
            positions: `[T]` or `[B, T]`; None counts from 0.
            mask: bool `[B, 1, T, S]`, which of the S values so far may be looked at; None: none that comes later.
            caches: keys and values of earlier calls for every layer, extended by this one.

        Returns:
            `[B, T, D]`, after the final norm.
        """
        if positions is None:
            positions = torch.arange(values.shape[1], device=values.device)
        states: Tensor = self.model(values.to(self.dtype), positions, mask, caches)
        return states

    def head_for(self, steps: int) -> int:
        """Number of the head for the next of `steps` steps: the last in order before one that is too long."""
        fitting = 0
        for number, horizon in enumerate(self.horizons):
            if number and horizon > steps:
                break
            fitting = number
        return fitting

    def continued(self, values: Tensor, steps: int, *, seen: Tensor | None = None, limit: int | None = None) -> Tensor:
        """What follows standardised values: the longest head that does not overshoot, and again behind what it gave.

        Args:
            values: `[B, T]`.
            steps: how many values.
            seen: bool `[B, T]`, False where a row has not begun, or None where all have.
            limit: most values that one of them looks back on; None for all.

        Returns:
            `[B, steps]`, in the type of `values`.
        """
        caches = [KeyCache() for _ in self.model.layers]
        fresh, positions, keys = values, positions_of(values, seen), values.shape[1]
        found: list[Tensor] = []
        while True:
            mask = mask_of(seen, fresh.shape[1], keys, fresh.device)
            states = self(fresh, positions=positions, mask=mask, caches=caches)
            left = steps - sum(part.shape[1] for part in found)
            fresh = self.lm_heads[self.head_for(left)](states[:, -1])[:, :left].to(values.dtype)
            found.append(fresh)
            if (new := fresh.shape[1]) == left:
                return torch.cat(found, dim=1)
            positions = positions[..., -1:] + torch.arange(1, new + 1, device=values.device)
            seen, keys = None if seen is None else F.pad(seen, (0, new), value=True), keys + new
            if limit is not None:
                keys = at_most(limit, keys)
                keep_newest(caches, keys - new)
                seen = None if seen is None else newest(seen, keys)

    def read(self, context: Tensor) -> Past:
        """Standardise a context `[B, L]`, NaN = missing, by the mean and the standard deviation of a sample."""
        context = newest(context, self.context_length)
        scale = InstanceScale(context)
        held = ~torch.isnan(context)
        count = held.sum(-1, keepdim=True).to(scale.scale.dtype)
        # The scale divides by the number of values, that of a sample by one less.
        scale.scale = scale.scale * (count.clamp(min=1) / (count - 1).clamp(min=1)).sqrt()
        values = scale.apply(fill_gaps(context))
        seen = ~torch.isnan(values)
        seen[:, -1] = True
        later = held.flip(-1).cummax(-1).values.flip(-1)
        return Past(torch.nan_to_num(values, nan=0.0), seen, seen & (held | ~later), scale.apply(context), scale)

    def row_losses(self, batch: Batch) -> Tensor:
        """Huber loss of what all heads forecast at every value of context and target, averaged over the heads.

        What a value is to forecast ends with the target; missing values are not forecast, and nothing is at a gap that
        was filled by what follows it. In training the routers' balance loss is added. A row without any target gives 0.

        Args:
            batch: with a target of at most the native horizon.

        Returns:
            `[B]`.
        """
        wanted = self.wanted(batch)
        past = self.read(batch.context)
        target = past.scale.apply(wanted)
        labels = torch.cat([past.known, target], dim=1)[:, 1:]
        ahead = labels.shape[1] - past.values.shape[1]
        values = torch.cat([past.values, _carried(past.values[:, -1:], target)[:, :ahead]], dim=1)
        own, seen = (F.pad(part, (0, ahead), value=True) for part in (past.own, past.seen))
        shown = None if bool(seen.all()) else seen
        length = values.shape[1]
        with routings(self.model) as found:
            mask = mask_of(shown, length, length, values.device)
            states = self(values, positions=positions_of(values, shown), mask=mask)
        counted = (~torch.isnan(labels)).to(values.dtype)
        total, heads = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
        for head in self.lm_heads:
            given = head(states).to(values.dtype)
            errors, number = huber_sums(given, torch.nan_to_num(labels, nan=0.0), counted, own)
            total = total + errors / number.clamp(min=1)
            heads = heads + (number > 0)
        losses = total / heads.clamp(min=1)
        if self.training and self.balance and found:
            losses = losses + self.balance * balance_loss(found, self.model.experts, shown)
        return torch.where(torch.isnan(wanted).all(1), torch.zeros_like(losses), losses)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Forecasts `[B, 1, steps]`, a head's horizon at a time."""
        self.check_batch(batch)
        past = self.read(unrounded(batch.context))
        seen = None if all_set(past.seen) else past.seen
        found = self.continued(past.values, steps, seen=seen, limit=self.reach)
        return as_given(past.scale.invert(found[:, None]), batch.context)


def huber_sums(given: Tensor, labels: Tensor, counted: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of the Huber losses of one head, and the weight of what it forecasts.

    Args:
        given: `[B, T, h]`, what is forecast at each value: labels t to t + h - 1.
        labels: `[B, T]` or longer; beyond the end they are 0.
        counted: weight of each label, of the same shape; beyond the end 0.
        own: weight of each value that forecasts, `[B, T]`, or None for 1.

    Returns:
        Sums and weights, both `[B]`.
    """
    length, horizon = given.shape[1:]
    short = (0, max(0, length + horizon - 1 - labels.shape[1]))
    wanted, weights = (F.pad(part, short).unfold(-1, horizon, 1)[:, :length] for part in (labels, counted))
    if own is not None:
        weights = weights * own[..., None]
    errors = F.huber_loss(given, wanted, reduction="none", delta=HUBER)
    return (errors * weights).sum((1, 2)), weights.sum((1, 2))


def _carried(first: Tensor, values: Tensor) -> Tensor:
    """`[B, H]` with missing values replaced by the last one before them, at the beginning by `first` `[B, 1]`."""
    whole = torch.cat([first, values], dim=1)
    steps = torch.arange(whole.shape[1], device=whole.device)
    last = torch.where(torch.isnan(whole), torch.zeros_like(steps), steps).cummax(-1).values
    return whole.gather(1, last)[:, 1:]


def _horizons(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Horizons of the heads, in the order of the config."""
    told = config.get("horizon_lengths")
    found = [1] if told is None else told if isinstance(told, list | tuple) else [told]
    right = all(isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 for steps in found)
    if not found or not right or len(set(found)) != len(found):
        raise TspruneError(f"config.json: horizon_lengths is {told!r}, expected different positive numbers of steps")
    return tuple(found)


def _balance(config: Mapping[str, Any], family: str, *, sparse: bool) -> float:
    """Weight of the routers' balance loss in training."""
    wanted = entry(config, "apply_aux_loss", bool, family, sparse)
    if wanted and not sparse:
        raise TspruneError("config.json: apply_aux_loss is true, but with use_dense there are no routers to balance")
    return entry(config, "router_aux_loss_factor", float, family, 0.02) if wanted else 0.0


FAMILY = TimeMoe
