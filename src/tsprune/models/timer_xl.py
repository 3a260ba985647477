"""Timer-XL (OpenLTM) and Timer (thuml/timer-base-84m): decoders over tokens of many steps that give the next ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention, Rotary
from tsprune.blocks.branch import Branch
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.patching import InstanceScale
from tsprune.blocks.positions import rotary_table
from tsprune.blocks.prepacked import Linear
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._convolutions import as_convolutions, as_maps
from tsprune.models._forecaster import Capabilities, Checkpoint, each_window
from tsprune.models._fresh import fresh_weights
from tsprune.models._names import Renames
from tsprune.models._timer import DecoderLayer, Network, TokenDecoder

FAMILY_NAME = "timer_xl"
CONTEXT = 2880
"""Steps that the public checkpoints were trained on at most."""
OPEN = ("input_token_len", "output_token_len", "d_model", "n_heads", "e_layers")
HUB = ("input_token_len", "output_token_lens", "hidden_size", "num_attention_heads", "num_hidden_layers")
"""Entries that every config of the two layouts has."""


class Timer(TokenDecoder):
    """Both published layouts; `from_config` chooses one by the entries of the config."""

    family = FAMILY_NAME
    capabilities = Capabilities(multivariate=True, past_covariates=True, missing_values=False, quantiles=False)
    checkpoints = (
        Checkpoint("thuml/timer-base-84m", 84.14, "Apache-2.0", "single series only; not verified here"),
        Checkpoint(
            "OpenLTM Timer-XL, checkpoint.pth",
            67.4,
            "not stated",
            "linked at github.com/thuml/OpenLTM, to be converted first; said to be pretrained on single series, which "
            "leaves its biases between series untrained; not verified here",
        ),
    )

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By the names of its sizes, unless the config says that it is another model."""
        return _layout(config) is not None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights, in the layout that the config describes."""
        layout = _layout(config) or (Timer84M if "output_token_lens" in config else TimerXL)
        return cast(Self, layout(config))


class TimerXL(Timer):
    """The layout of OpenLTM: biases everywhere, half of a head turned, variate biases between the series of a window.

    Tokens of all series of a window stand in one sequence and see all that is not later. With `covariate`, the last
    series of a window (the target rows, where the batch names them) sees all tokens of the others, later ones included,
    and these see only themselves.
    """

    head_paths = ("head",)
    names = Renames(
        [
            ("blocks.attn_layers.*.attention.query_projection", "blocks.attn_layers.*.layer.0.attention.q"),
            ("blocks.attn_layers.*.attention.key_projection", "blocks.attn_layers.*.layer.0.attention.k"),
            ("blocks.attn_layers.*.attention.value_projection", "blocks.attn_layers.*.layer.0.attention.v"),
            ("blocks.attn_layers.*.attention.out_projection", "blocks.attn_layers.*.layer.0.attention.o"),
            (
                "blocks.attn_layers.*.attention.inner_attention.attn_bias.emb",
                "blocks.attn_layers.*.layer.0.attention.relative_attention_bias",
            ),
            ("blocks.attn_layers.*.norm1", "blocks.attn_layers.*.layer.0.layer_norm"),
            ("blocks.attn_layers.*.conv1", "blocks.attn_layers.*.layer.1.feed_forward.wi"),
            ("blocks.attn_layers.*.conv2", "blocks.attn_layers.*.layer.1.feed_forward.wo"),
            ("blocks.attn_layers.*.norm2", "blocks.attn_layers.*.layer.1.layer_norm"),
        ]
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        length = entry(config, "output_token_len", int, self.family)
        super().__init__(config, [length], entry(config, "seq_len", int, self.family, CONTEXT))
        if entry(config, "flash_attention", bool, self.family, False):
            raise TspruneError(
                "config.json: flash_attention is true; that path of the original code puts the outputs of heads in "
                "another order and does not scale the biases, which is not computed here; set it to false if the "
                "weights were trained without it"
            )
        width = entry(config, "d_model", int, self.family)
        layers = entry(config, "e_layers", int, self.family)
        heads, self.head_width = _heads(config, "d_model", "n_heads", 4)
        hidden = entry(config, "d_ff", int, self.family, 0) or 4 * width
        dropout = entry(config, "dropout", float, self.family, 0.0)
        # The original code takes every other name for gelu.
        act = "relu" if entry(config, "activation", str, self.family, "relu") == "relu" else "gelu"
        self.normalises = entry(config, "use_norm", bool, self.family, True)
        self.covariate = entry(config, "covariate", bool, self.family, False)

        def layer() -> DecoderLayer:
            attention = Attention(
                width, heads, self.head_width, rotary=True, neighbours=True, buckets=2, scaled_table=True, bias=True,
                dropout=dropout,
            )  # fmt: skip
            feed = FeedForward(width, hidden, act=act, bias=True, dropout=dropout)
            return DecoderLayer(
                [
                    Branch("attention", attention, nn.LayerNorm(width), width, dropout, after=True),
                    Branch("feed_forward", feed, nn.LayerNorm(width), width, dropout, after=True),
                ]
            )

        self.embedding = Linear(self.patch, width)
        attn_layers = nn.ModuleList(layer() for _ in range(layers))
        self.blocks = nn.ModuleDict({"attn_layers": attn_layers, "norm": nn.LayerNorm(width)})
        self.head = Linear(width, length)
        fresh_weights(self, 1, layers)

    @property
    def network(self) -> Network:
        """The parts of the network."""
        layers = cast(nn.ModuleList, self.blocks["attn_layers"])
        return Network(self.embedding, layers, self.blocks["norm"], [self.head])

    def rotary(self, positions: Tensor) -> Rotary:
        """Neighbouring pairs in the first half of a head."""
        return rotary_table(positions, self.head_width, neighbours=True, turned=self.head_width // 2)

    def network_windows(self, batch: Batch) -> Tensor:
        """One sequence for each window."""
        return each_window(batch)

    def tensors_from_public(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convolutions of width 1 are linear maps."""
        return super().tensors_from_public(as_maps(tensors))

    def tensors_to_public(self) -> dict[str, Tensor]:
        """Our tensors under the names that the checkpoint files carry, the feed-forward maps as convolutions."""
        return as_convolutions(super().tensors_to_public())


class Timer84M(Timer):
    """The layout of the hub: gated feed-forward, whole heads turned, one head of output for every length.

    Every row is a window of its own. Rolled out, the longest head that does not overshoot is taken each time.
    """

    capabilities = Capabilities(missing_values=False, quantiles=False)
    head_paths = ("lm_heads",)
    names = Renames(
        [
            ("model.layers.*.self_attn.q_proj", "model.layers.*.layer.0.self_attn.q"),
            ("model.layers.*.self_attn.k_proj", "model.layers.*.layer.0.self_attn.k"),
            ("model.layers.*.self_attn.v_proj", "model.layers.*.layer.0.self_attn.v"),
            ("model.layers.*.self_attn.o_proj", "model.layers.*.layer.0.self_attn.o"),
            ("model.layers.*.norm1", "model.layers.*.layer.0.layer_norm"),
            ("model.layers.*.ffn_layer.gate_proj", "model.layers.*.layer.1.ffn_layer.wi_0"),
            ("model.layers.*.ffn_layer.up_proj", "model.layers.*.layer.1.ffn_layer.wi_1"),
            ("model.layers.*.ffn_layer.down_proj", "model.layers.*.layer.1.ffn_layer.wo"),
            ("model.layers.*.norm2", "model.layers.*.layer.1.layer_norm"),
        ]
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        lengths = entry(config, "output_token_lens", list, self.family)
        if not all(isinstance(length, int) and not isinstance(length, bool) for length in lengths):
            raise TspruneError(f"config.json: output_token_lens is {lengths[:5]}, expected whole numbers")
        most = entry(config, "max_position_embeddings", int, self.family, 10000)
        super().__init__(config, lengths, min(CONTEXT, most * entry(config, "input_token_len", int, self.family)))
        width = entry(config, "hidden_size", int, self.family)
        layers = entry(config, "num_hidden_layers", int, self.family)
        heads, self.head_width = _heads(config, "hidden_size", "num_attention_heads", 2)
        hidden = entry(config, "intermediate_size", int, self.family)
        act = entry(config, "hidden_act", str, self.family, "silu")
        dropout = entry(config, "attention_dropout", float, self.family, 0.0)

        def layer() -> DecoderLayer:
            attention = Attention(
                width, heads, self.head_width, rotary=True, bias=True, out_bias=False, dropout=dropout
            )
            feed = FeedForward(width, hidden, act=act, gated=True)
            return DecoderLayer(
                [
                    Branch("self_attn", attention, nn.LayerNorm(width), width, after=True),
                    Branch("ffn_layer", feed, nn.LayerNorm(width), width, after=True),
                ]
            )

        emb = nn.ModuleDict({"emb": Linear(self.patch, width, bias=False)})
        decoder = nn.ModuleList(layer() for _ in range(layers))
        self.model = nn.ModuleDict({"embed_layer": emb, "layers": decoder, "norm": nn.LayerNorm(width)})
        self.lm_heads = nn.ModuleList(Linear(width, length, bias=False) for length in lengths)
        fresh_weights(self, 1, layers)

    @property
    def network(self) -> Network:
        """The parts of the network."""
        embedding = cast(nn.ModuleDict, self.model["embed_layer"])["emb"]
        return Network(embedding, cast(nn.ModuleList, self.model["layers"]), self.model["norm"], list(self.lm_heads))

    def rotary(self, positions: Tensor) -> Rotary:
        """Entries half a head apart; the base is fixed, whatever `rope_theta` says, as in the original code."""
        return rotary_table(positions, self.head_width)

    def instance_scale(self, values: Tensor) -> InstanceScale:
        """With the standard deviation of a sample, which divides by one less than the number of values."""
        scale = InstanceScale(values)
        count = (~torch.isnan(values)).sum(-1, keepdim=True).to(scale.scale.dtype)
        scale.scale = scale.scale * (count.clamp(min=1) / (count - 1).clamp(min=1)).sqrt()
        return scale


def _layout(config: Mapping[str, Any]) -> type[TimerXL] | type[Timer84M] | None:
    """The layout that a config describes, or None for another model's."""
    named = {config.get("model_type"), *(config.get("architectures") or [])} - {None}
    if named - {FAMILY_NAME, "timer", "TimerForPrediction"} or config.get("model", FAMILY_NAME) != FAMILY_NAME:
        return None
    if FAMILY_NAME in named or all(config.get(name) is not None for name in OPEN):
        return TimerXL
    return Timer84M if named or all(config.get(name) is not None for name in HUB) else None


def _heads(config: Mapping[str, Any], width_name: str, heads_name: str, multiple: int) -> tuple[int, int]:
    """Number and width of the heads, which rotary positions must fit."""
    width, heads = entry(config, width_name, int, FAMILY_NAME), entry(config, heads_name, int, FAMILY_NAME)
    if not width or not heads or width % heads or width // heads % multiple:
        raise TspruneError(
            f"config.json: {width_name} {width} over {heads_name} {heads} must give heads whose width is a multiple of "
            f"{multiple}, for rotary positions"
        )
    return heads, width // heads


FAMILY = Timer
