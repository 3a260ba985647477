"""The network of Toto: patches in, layers along time and across series, a mixture for each step of the next patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.across import AcrossSeriesAttention, Groups
from tsprune.blocks.attention import Attention, Rotary
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.causalscale import CausalScale, PatchScaling
from tsprune.blocks.distributions import StudentT
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.keycache import KeyCache
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.positions import causal_mask
from tsprune.blocks.prepacked import Linear
from tsprune.blocks.xpos import fading_tables
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._toto_outlook import Outlook

FAMILY = "toto"
SCALER = "<class 'model.scaler.CausalPatchStdMeanScaler'>"
OUTPUT = "<class 'model.distribution.MixtureOfStudentTsOutput'>"
EPS = 1e-8
AT_ONCE = 1 << 24
"""Features that are worked on together where no gradient is asked for."""


@dataclass(frozen=True)
class Around:
    """What the tokens of one pass may look at.

    Args:
        rotary: tables for queries.
        key_rotary: tables for keys.
        mask: which keys each query may see in time, or None: all up to itself.
        groups: which rows inform each other; None: none.
        seen: bool `[B, T]`, which tokens other rows may look at, or None: all.
    """

    rotary: Rotary
    key_rotary: Rotary
    mask: Tensor | None = None
    groups: Groups | None = None
    seen: Tensor | None = None


class TimeLayer(Layer):
    """Attention to the row's own past, feed-forward."""

    def forward(self, x: Tensor, around: Around, cache: KeyCache | None) -> Tensor:
        """`[B, T, D]` in and out."""
        attention, feed = self.branches
        x = attention(
            x,
            mask=around.mask,
            causal=around.mask is None,
            rotary=around.rotary,
            key_rotary=around.key_rotary,
            cache=cache,
        )
        out: Tensor = feed(x)
        return out


class SpaceLayer(Layer):
    """Attention among the rows of a group at the same time, feed-forward."""

    def forward(self, x: Tensor, around: Around, cache: KeyCache | None) -> Tensor:
        """`[B, T, D]` in and out; nothing earlier is looked at, so the cache stays empty."""
        attention, feed = self.branches
        out: Tensor = feed(attention(x, groups=around.groups, observed=around.seen))
        return out


class PatchEmbedding(nn.Module):
    """One linear map of a patch's scaled values."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.projection = Linear(patch, width)


class Transformer(nn.Module):
    """The layers; there is no norm behind the last one."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, around: Around, caches: Sequence[KeyCache | None]) -> Tensor:
        """`[B, T, D]` in and out; one cache for each layer."""
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, around, cache)
        return x


class StudentTMixture(nn.Module):
    """Parameters of K Student's t components for every step, from D features of the step."""

    def __init__(self, width: int, components: int) -> None:
        super().__init__()
        self.df = Linear(width, components)
        self.loc_proj = Linear(width, components)
        self.scale_proj = Linear(width, components)
        self.mixture_weights = Linear(width, components)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`[..., D]` to weights before their softmax, degrees of freedom (more than two), locations and scales."""
        maps = (self.mixture_weights, self.df, self.loc_proj, self.scale_proj)
        logits, df, loc, scale = (_at_least_single(part(features)) for part in maps)
        least = torch.finfo(df.dtype).eps
        return logits, 2 + F.softplus(df).clamp(min=least), loc, F.softplus(scale).clamp(min=least)


class Backbone(nn.Module):
    """The network under the tensor names of the public checkpoint.

    Args:
        config: the public config.

    Raises:
        TspruneError: names the entry that is missing, impossible, or that we have no code for.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.patch = entry(config, "patch_size", int, FAMILY)
        self.width, heads = entry(config, "embed_dim", int, FAMILY), entry(config, "num_heads", int, FAMILY)
        hidden, dropout = entry(config, "mlp_hidden_dim", int, FAMILY), entry(config, "dropout", float, FAMILY)
        axes = _spacewise(config)
        _check(config, self.patch, self.width, heads)
        section = entry(config, "output_distribution_kwargs", dict, FAMILY, {})
        components = entry(section, "k_components", int, FAMILY)
        if components < 1:
            raise TspruneError("config.json: k_components is 0, expected one component or more")
        exponent = entry(config, "scale_factor_exponent", float, FAMILY, 10.0)
        bounded = entry(config, "stabilize_with_global", bool, FAMILY, True)
        self.scaling = PatchScaling(self.patch, 10.0**exponent if bounded else None)
        self.head_width = self.width // heads

        def layer(spacewise: bool) -> Layer:
            kind = AcrossSeriesAttention if spacewise else Attention
            rotary = not spacewise
            attention = kind(
                self.width, heads, self.head_width, rotary=rotary, neighbours=rotary, bias=True, dropout=dropout
            )
            feed = FeedForward(self.width, hidden, act="silu", gated=True, bias=True)
            branches = [
                Branch("attention", attention, RMSNorm(self.width, EPS), self.width),
                Branch("mlp", feed, RMSNorm(self.width, EPS), self.width, dropout),
            ]
            return SpaceLayer(branches) if spacewise else TimeLayer(branches)

        self.patch_embed = PatchEmbedding(self.patch, self.width)
        self.transformer = Transformer([layer(spacewise) for spacewise in axes])
        self.unembed = Linear(self.width, self.width * self.patch)
        self.output_distribution = StudentTMixture(self.width, components)

    @property
    def layers(self) -> list[Layer]:
        """All layers in order."""
        return [layer for layer in self.transformer.layers if isinstance(layer, Layer)]

    def read(
        self, context: Tensor, observed: Tensor, groups: Groups | None, caches: Sequence[KeyCache] | None = None
    ) -> tuple[Tensor, CausalScale]:
        """The states of all patches of a context.

        Args:
            context: `[B, T * P]`, own units, NaN = missing.
            observed: bool of that shape: what enters the statistics.
            groups: which rows inform each other; None: none.
            caches: one for each layer, filled on the way; None keeps nothing.

        Returns:
            `[B, T, D]`, and how the patches were scaled.
        """
        scale = self.scaling.over(context, observed)
        patches = context.view(len(context), -1, self.patch)
        seen = seen_patches(patches)
        count = patches.shape[1]
        positions = torch.arange(count, device=context.device)
        around = Around(
            *self.tables(positions if seen is None else from_start(positions, seen), (count - 1) // 2),
            groups=groups,
            mask=None if seen is None else causal_mask(seen),
            seen=seen,
        )
        return self.states(scale.apply(patches), around, caches), scale

    def states(self, scaled: Tensor, around: Around, caches: Sequence[KeyCache] | None = None) -> Tensor:
        """States `[B, T, D]` of scaled patches `[B, T, P]`."""
        dtype = self.patch_embed.projection.weight.dtype
        x = self.patch_embed.projection(scaled.to(dtype))
        out: Tensor = self.transformer(x, around, [None] * len(self.layers) if caches is None else caches)
        return out

    def tables(self, positions: Tensor, centre: int) -> tuple[Rotary, Rotary]:
        """Rotary tables for queries and keys at positions `[T]` or `[B, T]`."""
        return fading_tables(positions, self.head_width, centre)

    def outlook(self, states: Tensor, scale: CausalScale) -> Outlook:
        """What each token `[B, T, D]` expects of the patch behind its own."""
        rows = len(states)
        if not torch.is_grad_enabled():
            # D features for every step would take gigabytes, for rows with many paths.
            rows = max(1, AT_ONCE // (states.shape[1] * self.patch * self.width))
        parts = [
            self.output_distribution(self.unembed(some).view(*some.shape[:2], self.patch, self.width))
            for some in states.chunk(max(1, -(-len(states) // max(1, rows))))
        ]
        logits, df, loc, spread = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return Outlook(logits, StudentT(df, loc, spread), scale)


def seen_patches(patches: Tensor) -> Tensor | None:
    """Which patches `[B, T, P]` are part of their row, bool `[B, T]`; None where all are.

    Those before the first value are only there because other rows are longer. A gap inside the row is part of it, and
    so is the last patch.
    """
    seen = (~torch.isnan(patches)).any(-1).cumsum(-1) > 0
    seen[:, -1] = True
    return None if bool(seen.all()) else seen


def from_start(positions: Tensor, seen: Tensor) -> Tensor:
    """Positions `[T]` counted from the first patch of each row, `[B, T]`; `seen` as `seen_patches` gives it."""
    return (positions - (~seen).sum(-1, keepdim=True)).clamp(min=0)


def _spacewise(config: Mapping[str, Any]) -> list[bool]:
    """Whether each layer works across series instead of along time."""
    name = "spacewise_every_n_layers"
    layers = entry(config, "num_layers", int, FAMILY)
    if config.get(name) == -1:
        return [False] * layers
    every = entry(config, name, int, FAMILY)
    if not every or layers % every:
        raise TspruneError(f"config.json: {name} is {every}, expected -1 or a divisor of num_layers, which is {layers}")
    place = 0 if entry(config, "spacewise_first", bool, FAMILY, True) else every - 1
    return [number % every == place for number in range(layers)]


def _check(config: Mapping[str, Any], patch: int, width: int, heads: int) -> None:
    """Refuse what the public code allows and no public checkpoint uses, and sizes that do not fit."""
    if patch < 1 or entry(config, "stride", int, FAMILY) != patch:
        raise TspruneError(
            f"config.json: stride {config['stride']} must equal patch_size {patch}, and both be positive"
        )
    if heads < 1 or width % heads or width // heads % 2:
        raise TspruneError(f"config.json: embed_dim {width} does not give num_heads {heads} heads of an even width")
    if entry(config, "scaler_cls", str, FAMILY) != SCALER:
        raise TspruneError(f"config.json: scaler_cls is {config['scaler_cls']!r}, family toto has only {SCALER!r}")
    if entry(config, "output_distribution_classes", list, FAMILY) != [OUTPUT]:
        raise TspruneError(
            f"config.json: output_distribution_classes is {config['output_distribution_classes']}, "
            f"family toto has only {[OUTPUT]}"
        )


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
