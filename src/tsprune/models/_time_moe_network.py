"""The network of Time-MoE: a decoder over single values with experts, and an output head for each horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.feedforward import FeedForward, activation
from tsprune.blocks.keycache import KeyCache
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.positions import causal_mask, rotary_table
from tsprune.blocks.prepacked import Linear
from tsprune.errors import TspruneError
from tsprune.models._config import entry


class DecoderLayer(Layer):
    """Causal self-attention, then experts or one feed-forward network."""

    def forward(self, x: Tensor, **inputs: Any) -> Tensor:
        """`[B, T, D]` in and out; further inputs go to the attention."""
        attention, feed = self.branches
        out: Tensor = feed(attention(x, **inputs))
        return out


class ValueEmbedding(nn.Module):
    """A value times a learned vector, gated by an activation of its product with another one.

    Args:
        width: residual width D.
        act: name of the activation.
    """

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.emb_layer = Linear(1, width, bias=False)
        self.gate_layer = Linear(1, width, bias=False)
        self.act = activation(act)

    def forward(self, values: Tensor) -> Tensor:
        """`[B, T]` to `[B, T, D]`."""
        x = values[..., None]
        out: Tensor = self.act(self.gate_layer(x)) * self.emb_layer(x)
        return out


class Decoder(nn.Module):
    """The embedding, the layers and the final norm.

    Args:
        config: the public config.
        family: named in errors.

    Attributes:
        width: residual width D.
        experts: experts of every layer before any cut, 0 where layers have one network instead.
    """

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        super().__init__()
        self.width, heads, self.head_width = _heads(config, family)
        sharing = entry(config, "num_key_value_heads", int, family, heads)
        if not sharing or heads % sharing:
            raise TspruneError(f"config.json: num_key_value_heads {sharing} must divide num_attention_heads {heads}")
        self.theta = entry(config, "rope_theta", float, family, 10000.0)
        eps = entry(config, "rms_norm_eps", float, family, 1e-6)
        dropout = entry(config, "attention_dropout", float, family, 0.0)
        act = entry(config, "hidden_act", str, family, "silu")
        hidden = entry(config, "intermediate_size", int, family)
        self.experts, used = _experts(config, family)

        def network(channels: int) -> FeedForward:
            return FeedForward(self.width, channels, act=act, gated=True)

        def feed() -> FeedForward | MixtureOfExperts:
            if not self.experts:
                return network(hidden)
            parts = [network(hidden // used) for _ in range(self.experts)]
            return MixtureOfExperts(self.width, parts, used, shared=network(hidden), shared_gate=True)

        def attention() -> Attention:
            return Attention(
                self.width, heads, self.head_width, kv_heads=sharing, rotary=True, bias=True, out_bias=False,
                dropout=dropout,
            )  # fmt: skip

        def layer() -> DecoderLayer:
            first = Branch("self_attn", attention(), RMSNorm(self.width, eps), self.width)
            return DecoderLayer([first, Branch("ffn_layer", feed(), RMSNorm(self.width, eps), self.width)])

        self.embed_layer = ValueEmbedding(self.width, act)
        self.layers = nn.ModuleList(layer() for _ in range(entry(config, "num_hidden_layers", int, family)))
        self.norm = RMSNorm(self.width, eps)

    def forward(
        self, values: Tensor, positions: Tensor, mask: Tensor | None, caches: Sequence[KeyCache] | None = None
    ) -> Tensor:
        """The states that every head reads.

        Args:
            values: `[B, T]`, standardised.
            positions: `[T]` or `[B, T]`.
            mask: bool `[B or 1, 1, T, S]`, which of the S values so far may be looked at; None: none that comes later.
            caches: keys and values of earlier calls for every layer, extended by this one.

        Returns:
            `[B, T, D]`, after the final norm.
        """
        rotary = rotary_table(positions, self.head_width, self.theta)
        x = self.embed_layer(values)
        for number, layer in enumerate(self.layers):
            cache = None if caches is None else caches[number]
            x = layer(x, mask=mask, causal=mask is None, rotary=rotary, cache=cache)
        out: Tensor = self.norm(x)
        return out


class OutputHead(nn.Module):
    """The next values from the state at a value.

    Args:
        width: residual width D.
        steps: how many values.
    """

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.out_layer = Linear(width, steps, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """`[..., D]` to `[..., steps]`."""
        out: Tensor = self.out_layer(states)
        return out


def positions_of(values: Tensor, seen: Tensor | None) -> Tensor:
    """Positions that count from the first value of each row: `[T]`, or `[B, T]` where rows begin at different times.

    Args:
        values: `[B, T]`.
        seen: bool `[B, T]`, False where a row has not begun, or None where all have.
    """
    if seen is None:
        return torch.arange(values.shape[1], device=values.device)
    return (seen.cumsum(-1) - 1).clamp(min=0)


def mask_of(seen: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor | None:
    """Which of the values so far the newest ones may look at.

    Args:
        seen: bool `[B, keys]`, False where a row has not begun, or None where all have.
        queries: how many are the newest T.
        keys: how many there are in all S.
        device: of the mask.

    Returns:
        bool `[B or 1, 1, T, S]`, or None where their order alone decides.
    """
    if queries == keys:
        return None if seen is None else causal_mask(seen)
    if seen is None and queries == 1:
        return None
    ordered = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return ordered if seen is None else ordered & seen[:, None, None]


def keep_newest(caches: Sequence[KeyCache], tokens: int) -> None:
    """Drop all but the newest tokens from caches, in place."""
    for cache in caches:
        if cache.key is not None and cache.value is not None and cache.length > tokens:
            cache.key, cache.value = cache.key[:, :, -tokens:], cache.value[:, :, -tokens:]


def _heads(config: Mapping[str, Any], family: str) -> tuple[int, int, int]:
    """Residual width, number of heads and their width."""
    width, heads = entry(config, "hidden_size", int, family), entry(config, "num_attention_heads", int, family)
    if not width or not heads or width % heads or width // heads % 2:
        raise TspruneError(
            f"config.json: hidden_size {width} over num_attention_heads {heads} must give heads of an even width"
        )
    return width, heads, width // heads


def _experts(config: Mapping[str, Any], family: str) -> tuple[int, int]:
    """Number of experts, and how many work on a value; 0 and 1 for a dense network."""
    if entry(config, "use_dense", bool, family, False):
        return 0, 1
    experts = entry(config, "num_experts", int, family, 1)
    used = entry(config, "num_experts_per_tok", int, family, 2)
    if not 1 <= used <= experts:
        raise TspruneError(f"config.json: num_experts_per_tok {used} must be from 1 to num_experts, which is {experts}")
    return experts, used
