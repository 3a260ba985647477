"""The public config of a TinyTimeMixer, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tsprune.blocks.mixerstack import StackShape
from tsprune.blocks.observed import SCALERS
from tsprune.errors import TspruneError
from tsprune.models._config import entry, positive

FAMILY = "ttm"
ARCHITECTURE = "TinyTimeMixerForPrediction"
LOSSES = ("mse", "mae", "huber", "pinball")
WITHOUT: dict[str, Any] = {
    "self_attn": False, "enable_forecast_channel_mixing": False, "categorical_vocab_size_list": None,
    "masked_context_length": None, "scaling_dim": 1, "keepdim": True, "gate_mode": "softmax",
    "use_register_context_gating": False, "multi_scale": False, "register_tokens": 0, "fft_length": 0,
    "multi_quantile_head": False, "multi_quantile_heads": None, "decompose": False, "enable_base_norm_always": False,
}  # fmt: skip
"""Entries that change the network in ways that are not written here, and what they are in public r1 and r2 models."""


class Settings:
    """What a public config says, checked, with the public defaults.

    Attributes:
        series: series of a window that the network mixes C; 1 for none.
        targets: which of them it was trained to forecast; None for all.
        vocabulary: number of resolution tokens; 0 for a model without.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._refuse_others()
        self.context, self.patch, self.stride = (
            self._count("context_length", 64), self._count("patch_length", 8), self._count("patch_stride", 8),
        )  # fmt: skip
        if self.context <= self.patch:
            raise TspruneError(f"config.json: context_length {self.context} must exceed patch_length {self.patch}")
        self.horizon = self._count("prediction_length", 16)
        self.kept_horizon = self._count("prediction_filter_length", self.horizon)
        if self.kept_horizon > self.horizon:
            raise TspruneError(
                f"config.json: prediction_filter_length {self.kept_horizon} exceeds prediction_length {self.horizon}"
            )
        self.vocabulary = self._count("frequency_token_vocab_size", 5) if self._flag("resolution_prefix_tuning") else 0
        kind = entry(config, "positional_encoding_type", str, FAMILY, "sincos")
        self.positions = kind if self._flag("use_positional_encoding") else ""
        self.head_dropout = self._number("head_dropout", 0.2)
        self.encoder, self.decoder = self._stacks()
        self.raw = self._flag("decoder_raw_residual") and self._flag("use_decoder", True)
        self.series = self.encoder.series or self.decoder.series or 1
        self.targets = self._targets()
        self._loss()
        self._scaling()

    def _refuse_others(self) -> None:
        for name in self._config.get("architectures") or []:
            if name != ARCHITECTURE:
                raise TspruneError(f"config.json: the architecture is {name}; family ttm reads {ARCHITECTURE}")
        for name, plain in WITHOUT.items():
            found = self._config.get(name)
            if found is not None and found != plain:
                raise TspruneError(
                    f"config.json: entry {name!r} is {found!r}; family ttm reads models like the public r1 and r2, "
                    f"where it is {plain!r}"
                )

    def _stacks(self) -> tuple[StackShape, StackShape]:
        patches = (self.context - self.patch) // self.stride + 1 + (self.vocabulary > 0)
        if (stated := entry(self._config, "num_patches", int, FAMILY, patches)) != patches:
            raise TspruneError(f"config.json: num_patches is {stated}, but context and patches make it {patches}")
        encoder = StackShape(
            width=self._count("d_model", 16),
            patches=patches,
            series=self._mixed("mode"),
            layers=entry(self._config, "num_layers", int, FAMILY, 3),
            levels=entry(self._config, "adaptive_patching_levels", int, FAMILY, 0),
            expansion=self._count("expansion_factor", 2),
            gated=self._flag("gated_attn", True),
            batch_norm="batch" in entry(self._config, "norm_mlp", str, FAMILY, "LayerNorm").lower(),
            eps=self._number("norm_eps", 1e-5),
            dropout=self._number("dropout", 0.2),
        )
        if not self._flag("use_decoder", True):
            return encoder, replace(encoder, series=0, layers=0, levels=0)
        return encoder, replace(
            encoder,
            width=self._count("decoder_d_model", 8),
            series=self._mixed("decoder_mode"),
            layers=entry(self._config, "decoder_num_layers", int, FAMILY, 8),
            levels=entry(self._config, "decoder_adaptive_patching_levels", int, FAMILY, 0),
            dropout=self.head_dropout,
        )

    def _mixed(self, name: str) -> int:
        mode = entry(self._config, name, str, FAMILY, "common_channel")
        if mode not in ("common_channel", "mix_channel"):
            raise TspruneError(f"config.json: {name} is {mode!r}, expected 'common_channel' or 'mix_channel'")
        return self._count("num_input_channels", 1) if mode == "mix_channel" else 0

    def _targets(self) -> tuple[int, ...] | None:
        chosen = entry(self._config, "prediction_channel_indices", list, FAMILY, None)
        known = entry(self._config, "exogenous_channel_indices", list, FAMILY, None)
        if chosen is None and known is not None:
            chosen = [place for place in range(self._count("num_input_channels", 1)) if place not in known]
        return None if chosen is None else tuple(sorted(chosen))

    def _loss(self) -> None:
        self.loss = self._config.get("loss", "mse")
        if self.loss is not None and self.loss not in LOSSES:
            raise TspruneError(f"config.json: loss is {self.loss!r}, family ttm has {', '.join(LOSSES)}")
        self.delta, self.level = self._number("huber_delta", 1.0), self._number("quantile", 0.5)
        if not 0 < self.level < 1:
            raise TspruneError(f"config.json: quantile is {self.level}, expected a level between 0 and 1")

    def _scaling(self) -> None:
        told = self._config.get("scaling", "std")
        self.scaler = {True: "std", False: "none", None: "none"}.get(told, told)
        if self.scaler not in SCALERS:
            raise TspruneError(f"config.json: scaling is {told!r}, expected 'std', 'mean' or null")
        self.floor = None if self._config.get("minimum_scale") is None else self._number("minimum_scale", 0.0)
        self.unobserved = None if self._config.get("default_scale") is None else self._number("default_scale", 0.0)

    def _count(self, name: str, default: int) -> int:
        return positive(self._config, name, FAMILY, default)

    def _number(self, name: str, default: float) -> float:
        found: float = entry(self._config, name, float, FAMILY, default)
        return found

    def _flag(self, name: str, default: bool = False) -> bool:
        found: bool = entry(self._config, name, bool, FAMILY, default)
        return found
