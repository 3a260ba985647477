"""The fused tensors of Toto's checkpoints: taken apart on loading, put together again on saving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Layer
from tsprune.blocks.feedforward import FeedForward

Tensors = dict[str, Tensor]
ROOT = "model.transformer.layers"
LEAVES = ("weight", "bias")


def taken_apart(tensors: Mapping[str, Tensor], layers: Sequence[Layer]) -> Tensors:
    """Tensors of a file with queries, keys, values, gates and values of the feed-forward apart, under our names.

    Rows of the fused projection are laid out (3, head width, heads), ours (heads, head width) for each of the three.
    Tensors that do not fit, and those that are apart already, stay as they are.

    Args:
        tensors: by their names in the file.
        layers: with the sizes that the checkpoint has.
    """
    found = {name: tensor for name, tensor in tensors.items() if ".rotary_emb." not in name}
    for number, layer in enumerate(layers):
        attention, own = layer.branches[0].inner, f"{ROOT}.{number}.layer"
        heads = attention.heads if isinstance(attention, Attention) else 0
        for leaf in LEAVES:
            name = f"{ROOT}.{number}.attention.wQKV.{leaf}"
            fused = found.get(name)
            if fused is not None and heads and len(fused) % (3 * heads) == 0:
                by_head = fused.view(3, -1, heads, *fused.shape[1:]).transpose(1, 2)
                parts = by_head.reshape(3, -1, *fused.shape[1:]).unbind(0)
                found |= {f"{own}.0.attention.{part}.{leaf}": t for part, t in zip("qkv", parts, strict=True)}
                del found[name]
            for name in (f"{ROOT}.{number}.mlp.0.{leaf}", f"{ROOT}.{number}.mlp.0.w12.{leaf}"):
                if (fused := found.get(name)) is not None and len(fused) % 2 == 0:
                    gate, value = fused.chunk(2)
                    found |= {f"{own}.1.mlp.wi_0.{leaf}": gate, f"{own}.1.mlp.wi_1.{leaf}": value}
                    del found[name]
    return found


def put_together(tensors: Mapping[str, Tensor], layers: Sequence[Layer]) -> Tensors:
    """Our tensors, or their gradients, with those fused that public checkpoints hold fused.

    An attention whose heads differ in width, or whose maps read different channels, has no fused form: its tensors keep
    our names.

    Args:
        tensors: all of a model, by our names.
        layers: of that model.
    """
    found = dict(tensors)
    for number, layer in enumerate(layers):
        attention, feed = (branch.inner for branch in layer.branches)
        if isinstance(attention, Attention) and _even(attention):
            for leaf in LEAVES:
                own = [found.pop(f"{ROOT}.{number}.layer.0.attention.{part}.{leaf}") for part in "qkv"]
                by_head = torch.stack(own).view(3, attention.heads, -1, *own[0].shape[1:])
                found[f"{ROOT}.{number}.attention.wQKV.{leaf}"] = by_head.transpose(1, 2).flatten(0, 2)
        if isinstance(feed, FeedForward) and feed.hidden and feed.wi_0.in_features == feed.wi_1.in_features:
            for leaf in LEAVES:
                own = [found.pop(f"{ROOT}.{number}.layer.1.mlp.{part}.{leaf}") for part in ("wi_0", "wi_1")]
                found[f"{ROOT}.{number}.mlp.0.{leaf}"] = torch.cat(own)
    return found


def _even(attention: Attention) -> bool:
    """Whether all heads have the same width, in queries as in values, and the three maps read the same channels."""
    shape = attention.shape
    uneven = any(padded is not None for padded in (shape.padded_q, shape.padded_k, shape.padded_v))
    inputs = {part.in_features for part in (attention.q, attention.k, attention.v)}
    return shape.value_width > 0 and shape.pair_width == shape.value_width and not uneven and len(inputs) == 1
