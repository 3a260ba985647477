"""What the T5 networks share (Chronos-Bolt, Chronos-T5): parts of a stack, one table of relative biases per block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.keycache import KeyCache
from tsprune.blocks.keyroom import KeyRoom
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.positions import looked_up_buckets, relative_buckets
from tsprune.blocks.tracing import tracing
from tsprune.errors import TspruneError
from tsprune.models._config import entry, feed_forward_kind

SELF, CROSS = "SelfAttention", "EncDecAttention"
TABLE = f"layer.0.{SELF}.relative_attention_bias.weight"


class EncoderLayer(Layer):
    """Self-attention with relative biases, feed-forward."""

    def forward(self, x: Tensor, mask: Tensor | None, buckets: Tensor) -> Tensor:
        """`[B, T, D]` in and out."""
        attention, feed = self.branches
        out: Tensor = feed(attention(x, mask=mask, buckets=buckets))
        return out


class Parts:
    """Makes the branches of both stacks from the config.

    Attributes:
        width: residual width D.
        hidden: hidden channels of a feed-forward block.
        encoder_depth: layers of the encoder.
        decoder_depth: layers of the decoder.
    """

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        self.width = entry(config, "d_model", int, family)
        self.heads, self.head_width = entry(config, "num_heads", int, family), entry(config, "d_kv", int, family)
        self.hidden = entry(config, "d_ff", int, family)
        self.encoder_depth: int = entry(config, "num_layers", int, family)
        self.decoder_depth: int = entry(config, "num_decoder_layers", int, family, self.encoder_depth)
        self.buckets = entry(config, "relative_attention_num_buckets", int, family, 32)
        self.max_distance = entry(config, "relative_attention_max_distance", int, family, 128)
        if self.buckets < 4 or self.max_distance <= self.buckets // 4:
            raise TspruneError(
                f"config.json: relative_attention_num_buckets {self.buckets} must be 4 or more and "
                f"relative_attention_max_distance {self.max_distance} more than a quarter of it"
            )
        self.eps = entry(config, "layer_norm_epsilon", float, family, 1e-6)
        self.dropout = entry(config, "dropout_rate", float, family, 0.1)
        self.act, self.gated = feed_forward_kind(config, family)

    def norm(self) -> RMSNorm:
        """The norm of a branch, or of a stack."""
        return RMSNorm(self.width, self.eps)

    def attention(self, kind: type[Attention] = Attention, name: str = SELF) -> Branch:
        """An attention; only one that looks at its own tokens has a table of relative biases."""
        buckets = self.buckets if name == SELF else 0
        inner = kind(self.width, self.heads, self.head_width, scale=1.0, buckets=buckets, dropout=self.dropout)
        return Branch(name, inner, self.norm(), self.width, self.dropout)

    def feed_forward(self) -> Branch:
        """A feed-forward block."""
        inner = FeedForward(self.width, self.hidden, act=self.act, gated=self.gated, dropout=self.dropout)
        return Branch("DenseReluDense", inner, self.norm(), self.width, self.dropout)

    def encoder(self) -> Stack:
        """The encoder."""
        return Stack(self.encoder_depth, lambda: EncoderLayer([self.attention(), self.feed_forward()]), self)

    def token_decoder(self) -> Decoder:
        """A decoder of many tokens."""
        return Decoder(
            self.decoder_depth,
            lambda: TokenDecoderLayer([self.attention(), self.attention(name=CROSS), self.feed_forward()]),
            self,
        )

    def distances(self, length: int, device: torch.device, *, bidirectional: bool) -> Tensor:
        """Rows of the table of relative biases for a sequence attending to itself, `[T, T]`."""
        kind = {"bidirectional": bidirectional, "buckets": self.buckets, "max_distance": self.max_distance}
        found = looked_up_buckets(length, **kind) if tracing() else relative_buckets(length, length, **kind)
        return found.to(device)


class Stack(nn.Module):
    """Layers, a final norm, dropout at both ends.

    Args:
        depth: number of layers.
        layer: makes one layer.
        parts: see `Parts`.
    """

    def __init__(self, depth: int, layer: Callable[[], Layer], parts: Parts) -> None:
        super().__init__()
        self.block = nn.ModuleList(layer() for _ in range(depth))
        self.final_layer_norm = parts.norm()
        self.dropout = nn.Dropout(parts.dropout)

    def forward(self, x: Tensor, *inputs: Any) -> Tensor:
        """`[B, T, D]` in and out; further inputs go to every layer."""
        x = self.dropout(x)
        for layer in self.block:
            x = layer(x, *inputs)
        out: Tensor = self.dropout(self.final_layer_norm(x))
        return out


class Context(NamedTuple):
    """What the decoder needs to know of the context.

    Args:
        memory: `[B, T, D]`, the encoder's output.
        allowed: bool `[B, 1, 1, T]`, False where a value is missing; None for everywhere.
        scale: `[B, 1]`.
    """

    memory: Tensor
    allowed: Tensor | None
    scale: Tensor


class LayerCache:
    """Keys and values of one decoder layer: of the tokens so far, and of the context, computed once.

    Args:
        steps: tokens that will come in all.
    """

    def __init__(self, steps: int) -> None:
        self.own, self.context = KeyRoom(room=steps), KeyCache()


class TokenDecoderLayer(Layer):
    """Self-attention that sees no later tokens, attention to the encoder, feed-forward."""

    def forward(self, x: Tensor, memory: Tensor, allowed: Tensor | None, earlier: Tensor, buckets: Tensor) -> Tensor:
        """All tokens at once, `[B, T, D]` in and out; `earlier` is bool `[1, 1, T, T]`, `buckets` `[T, T]`."""
        attention, cross, feed = self.branches
        x = attention(x, mask=earlier, buckets=buckets)
        out: Tensor = feed(cross(x, memory=memory, mask=allowed))
        return out

    def step(self, x: Tensor, context: Context, buckets: Tensor, cache: LayerCache) -> Tensor:
        """The newest token of S paths of each row, `[B, S, D]` in and out.

        Paths of a row have pasts of their own, but share the context: there they stand side by side like tokens.
        """
        attention, cross, feed = self.branches
        alone = x.reshape(-1, 1, x.shape[-1])
        x = attention(alone, buckets=buckets, cache=cache.own).view_as(x)
        out: Tensor = feed(cross(x, memory=context.memory, mask=context.allowed, cache=cache.context))
        return out


class Decoder(Stack):
    """A decoder of many tokens, for all of them at once or for one more."""

    def step(self, x: Tensor, context: Context, buckets: Tensor, caches: Sequence[LayerCache]) -> Tensor:
        """`[B, S, D]` in and out; `buckets` `[1, t]` for the newest of t tokens."""
        x = self.dropout(x)
        for layer, cache in zip(self.block, caches, strict=True):
            x = layer.step(x, context, buckets, cache)  # type: ignore[operator]
        out: Tensor = self.dropout(self.final_layer_norm(x))
        return out


def cross_attentions(depth: int) -> list[str]:
    """Paths of a decoder's attentions to the encoder: without any, it would not see the context."""
    return [f"decoder.block.{number}.layer.1.{CROSS}" for number in range(depth)]


def with_own_tables(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public file has one table of relative biases per stack, in block 0; here every block gets a copy.

    Blocks may lose different heads, and their tables columns with them. A table that is there already stays.
    """
    ours = dict(tensors)
    for name in tensors:
        stack, _, rest = name.partition(".block.")
        number, _, leaf = rest.partition(".")
        table = tensors.get(f"{stack}.block.0.{TABLE}")
        if leaf == f"layer.0.{SELF}.q.weight" and table is not None:
            ours.setdefault(f"{stack}.block.{number}.{TABLE}", table)
    return ours


def with_shared_tables(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back: tables that equal that of block 0 are left out, as in public files; others cannot be."""
    public = dict(tensors)
    for name, table in tensors.items():
        stack, _, rest = name.partition(".block.")
        number, _, leaf = rest.partition(".")
        first = tensors.get(f"{stack}.block.0.{TABLE}")
        if leaf == TABLE and number != "0" and first is not None and torch.equal(first, table):
            del public[name]
    return public


def tables(names: Iterable[str]) -> list[list[str]]:
    """The tables of relative biases of each stack, that of block 0 first.

    Args:
        names: of all our tensors, block by block.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        stack, _, rest = name.partition(".block.")
        if rest.partition(".")[2] == TABLE:
            found.setdefault(stack, []).append(name)
    return list(found.values())


def with_one_embedding(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The token embedding as `shared.weight` alone; the stacks' names are tied to it, whichever was stored."""
    ours = dict(tensors)
    for tied in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if (stored := ours.pop(tied, None)) is not None:
            ours.setdefault("shared.weight", stored)
    return ours
