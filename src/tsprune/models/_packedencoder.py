"""The encoder over packed tokens that all Moirai generations share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from tsprune.blocks.attention import Attention, Rotary
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.positions import rotary_table
from tsprune.blocks.tracing import all_set
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._names import Renames
from tsprune.models._packing import Packed

PUBLIC_HEAD_WIDTH = 64
EPSILON = 1e-5
_PUBLIC, _OWN = "encoder.layers.*", "encoder.layers.*.layer"
_MAPS = (("fc1", "wi_1"), ("fc_gate", "wi_0"), ("fc2", "wo"))
NAMES = Renames(
    [
        (f"{_PUBLIC}.norm1", f"{_OWN}.0.layer_norm"),
        (f"{_PUBLIC}.norm2", f"{_OWN}.1.layer_norm"),
        *((f"{_PUBLIC}.self_attn.{name}_proj", f"{_OWN}.0.self_attn.{name}") for name in "qkv"),
        (f"{_PUBLIC}.self_attn.out_proj", f"{_OWN}.0.self_attn.o"),
        (f"{_PUBLIC}.self_attn.var_attn_bias.emb", f"{_OWN}.0.self_attn.relative_attention_bias"),
        (f"{_PUBLIC}.self_attn", f"{_OWN}.0.self_attn"),
        *((f"{_PUBLIC}.ffn.{public}", f"{_OWN}.1.ffn.{own}") for public, own in _MAPS),
        *((f"{_PUBLIC}.ffn.experts.*.{public}", f"{_OWN}.1.ffn.experts.*.{own}") for public, own in _MAPS),
        (f"{_PUBLIC}.ffn", f"{_OWN}.1.ffn"),
    ]
)
"""Public names and ours; the activated map of the gated networks is called fc_gate there and wi_0 here."""


class PackedLayer(Layer):
    """Attention among the tokens of a sample, gated feed-forward network or mixture of such."""

    def forward(self, x: Tensor, mask: Tensor | None, rotary: Rotary, buckets: Tensor | None) -> Tensor:
        """`[B, T, D]` in and out."""
        attention, feed = self.branches
        out: Tensor = feed(attention(x, mask=mask, rotary=rotary, buckets=buckets))
        return out


class PackedEncoder(nn.Module):
    """Pre-norm layers and a final norm.

    Queries and keys are normed per head, then the first half of each head is turned by the patch's time, in
    neighbouring pairs. A learned bias of each head says whether two tokens are of the same series.

    Args:
        config: the public config. `num_heads` is read where it stands there; public checkpoints have none, their heads
            are 64 wide.
        family: named in errors.
        feed: makes a feed-forward block from width and dropout.
        causal: whether tokens see none of a later time.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        family: str,
        feed: Callable[[int, float], FeedForward | MixtureOfExperts],
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        width = entry(config, "d_model", int, family)
        heads = entry(config, "num_heads", int, family, width // PUBLIC_HEAD_WIDTH)
        if heads < 1 or width % heads or (width // heads) % 4:
            raise TspruneError(
                f"config.json: d_model {width} does not make {heads} heads of a width that is a multiple of 4; public "
                f"models have heads of {PUBLIC_HEAD_WIDTH}, for others give num_heads"
            )
        dropout = entry(config, "dropout_p", float, family, 0.0)
        weights_dropout = entry(config, "attn_dropout_p", float, family, 0.0)
        self.head_width, self.causal = width // heads, causal

        def layer() -> PackedLayer:
            attention = Attention(
                width, heads, self.head_width, rotary=True, neighbours=True, buckets=2,
                qk_norm=partial(RMSNorm, self.head_width, EPSILON), dropout=weights_dropout,
            )  # fmt: skip
            return PackedLayer(
                [
                    Branch("self_attn", attention, RMSNorm(width, EPSILON), width, dropout),
                    Branch("ffn", feed(width, dropout), RMSNorm(width, EPSILON), width, dropout),
                ]
            )

        self.layers = nn.ModuleList(layer() for _ in range(entry(config, "num_layers", int, family)))
        self.norm = RMSNorm(width, EPSILON)

    def forward(self, x: Tensor, packed: Packed) -> Tensor:
        """`[B, T, D]` in and out."""
        mask, buckets = self._mask(packed), _same_series(packed)
        rotary = rotary_table(packed.time_id, self.head_width, neighbours=True, turned=self.head_width // 2)
        for layer in self.layers:
            x = layer(x, mask, rotary, buckets)
        out: Tensor = self.norm(x)
        return out

    def _mask(self, packed: Packed) -> Tensor | None:
        """Which tokens may be attended to, bool `[B, 1, T, T]`; None where all may."""
        sample, time = packed.sample_id, packed.time_id
        if not self.causal and all_set(sample == sample[:, :1]):
            return None
        allowed = sample[:, :, None] == sample[:, None, :]
        if self.causal:
            allowed = allowed & (time[:, None, :] <= time[:, :, None])
        return allowed[:, None]


def _same_series(packed: Packed) -> Tensor | None:
    """Rows of the table of biases `[B, T, T]`: 1 for the same series, 0 for another.

    None where every row of tokens is one series: the same bias on all logits changes no weight.
    """
    series = packed.variate_id
    if all_set(series == series[:, :1]):
        return None
    return (series[:, :, None] == series[:, None, :]).long()


def hidden_width(width: int) -> int:
    """Hidden channels of Moirai 1's gated networks: two thirds of 4 D, rounded up to a multiple of 8."""
    return (int(4 * width * 2 / 3) + 7) // 8 * 8


def swiglu(width: int, hidden: int, dropout: float) -> FeedForward:
    """The gated feed-forward network of all generations."""
    return FeedForward(width, hidden, act="silu", gated=True, dropout=dropout)


def check_tokens(config: Mapping[str, Any], family: str, context: int, horizon: int, size: int) -> None:
    """Raise TspruneError when context and horizon of one series are no whole patches, or too many."""
    most = entry(config, "max_seq_len", int, family)
    if context < size or horizon < size or context % size or horizon % size:
        raise TspruneError(
            f"config.json: context_length {context} and prediction_length {horizon} must be positive multiples of the "
            f"patch size {size}"
        )
    if context + horizon > most * size:
        raise TspruneError(
            f"config.json: context_length {context} and prediction_length {horizon} take "
            f"{(context + horizon) // size} patches of {size}, max_seq_len allows {most}"
        )


def positive_sizes(config: Mapping[str, Any], name: str, family: str) -> list[int]:
    """An entry that lists patch sizes."""
    found = config.get(name)
    sizes = list(found) if isinstance(found, tuple) else entry(config, name, list, family)
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise TspruneError(f"config.json: {name} is {sizes[:5]}, expected positive numbers of steps")
    if len(set(sizes)) != len(sizes):
        raise TspruneError(f"config.json: {name} {sizes[:5]} lists a size twice")
    return [int(size) for size in sizes]
