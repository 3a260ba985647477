"""PatchTST (2211.14730): an encoder over the patches of one series, small enough to be trained on your own data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.distributions import Mixture
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.norms import ChannelBatchNorm
from tsprune.blocks.observed import ObservedScale
from tsprune.blocks.patching import fill_gaps
from tsprune.blocks.rowscale import RowScale
from tsprune.blocks.tracing import fitted, newest
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry, positive
from tsprune.models._forecaster import Capabilities, Checkpoint, Forecaster
from tsprune.models._fresh import fresh_weights
from tsprune.models._names import Renames
from tsprune.models._patchtst_network import DISTRIBUTIONS, POOLS, Encoder, EncoderLayer, Head, Positions
from tsprune.models._rollout import DECILES, as_given, unrounded, widest

NAME = "patchtst"
LAYER = "model.encoder.layers.*"


class PatchTST(Forecaster):
    """PatchTST for prediction under the tensor names of the transformers class.

    Series do not see each other: each is a row of its own, whatever `num_input_channels` says. Gaps are filled by
    straight lines; what a short context lacks in front enters as 0 on the instance scale. The public network takes what
    is missing as it was given, with a mask that only the scaling reads.

    With `loss` other than mse it forecasts a distribution, of which the deciles are given.
    """

    family = NAME
    head_paths = ("head",)
    objectives = ("own", "mse")
    capabilities = Capabilities(missing_values=False, quantiles=False)
    checkpoints = (
        Checkpoint(
            "ibm-granite/granite-timeseries-patchtst", 0.62, "Apache-2.0",
            "trained on ETTh1 alone; size by that of the file, not verified here",
        ),
    )  # fmt: skip
    pretraining_corpora = ("ETTh1",)
    names = Renames(
        [
            *((f"{LAYER}.self_attn.{name}_proj", f"{LAYER}.layer.0.self_attn.{name}") for name in "qkv"),
            (f"{LAYER}.self_attn.out_proj", f"{LAYER}.layer.0.self_attn.o"),
            (f"{LAYER}.norm_sublayer1", f"{LAYER}.layer.0.layer_norm"),
            (f"{LAYER}.norm_sublayer3", f"{LAYER}.layer.1.layer_norm"),
            (f"{LAYER}.ff.0", f"{LAYER}.layer.1.ff.wi"),
            (f"{LAYER}.ff.3", f"{LAYER}.layer.1.ff.wo"),
        ]
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        _refuse(config)
        self.patch, self.stride = positive(config, "patch_length", NAME), positive(config, "patch_stride", NAME)
        self.context_length, self.native_horizon = (
            positive(config, "context_length", NAME),
            positive(config, "prediction_length", NAME),
        )
        if self.context_length <= self.patch:
            raise TspruneError(
                f"config.json: context_length {self.context_length} must be greater than patch_length {self.patch}"
            )
        self.scaler = _scaler(config)
        self.floor: float | None = entry(config, "minimum_scale", float, NAME, None)
        self.unobserved: float | None = entry(config, "default_scale", float, NAME, None)
        width, tokens = positive(config, "d_model", NAME), (self.context_length - self.patch) // self.stride + 1
        self.token: bool = entry(config, "use_cls_token", bool, NAME, False)
        positions = Positions(
            tokens, width, learned=_learned(config, width), token=self.token,
            dropout=entry(config, "positional_dropout", float, NAME, 0.0),
        )  # fmt: skip
        layers = [_layer(config, width) for _ in range(positive(config, "num_hidden_layers", NAME))]
        self.model = nn.ModuleDict({"encoder": Encoder(self.patch, width, positions, layers)})
        self.distribution_name = "" if config.get("loss", "mse") == "mse" else _distribution(config)
        self.levels = DECILES if self.distribution_name else (0.5,)
        self.capabilities = Capabilities(missing_values=False, quantiles=bool(self.distribution_name))
        pool = "first" if self.token else _pooling(config)
        self.head = Head(
            width * tokens if pool == "all" else width, self.native_horizon, POOLS[pool],
            parameters=DISTRIBUTIONS[self.distribution_name][0] if self.distribution_name else 0,
            dropout=entry(config, "head_dropout", float, NAME, 0.0),
        )  # fmt: skip
        fresh_weights(self, 1, len(layers))

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By architecture name, or by the model type."""
        architectures = config.get("architectures") or []
        return "PatchTSTForPrediction" in architectures or (not architectures and config.get("model_type") == NAME)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)

    def essential(self) -> list[list[str]]:
        """The attentions, where the head reads the token for the series alone: it sees the patches through them."""
        paths = [f"model.encoder.layers.{number}.layer.0.self_attn" for number in range(self._layers)]
        return [paths] if self.token else []

    @property
    def _layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    def network(self, scaled: Tensor) -> Tensor:
        """One pass.

        Args:
            scaled: `[B, context_length]` on the instance scale.

        Returns:
            `[B, outputs, native_horizon]` on that scale: one point forecast, or the parameters of the distribution
            before they are brought into their domain.
        """
        # Counted from the end: points that do not fill a patch are the oldest.
        start = (self.context_length - self.patch) % self.stride
        patches = scaled[:, start:].unfold(-1, self.patch, self.stride).to(self.dtype)
        out: Tensor = self.head(self.model["encoder"](patches))
        return out.to(scaled.dtype)

    def forward(self, context: Tensor) -> tuple[Tensor, ObservedScale, RowScale]:
        """What `network` says, its scale, and the scale of the losses.

        Args:
            context: `[B, L]`, original units, NaN = missing; only the last `context_length` steps are used.
        """
        wide = widest(self.dtype, context.dtype)
        values = fitted(fill_gaps(newest(context, self.context_length).to(wide)), self.context_length)
        observed = ~torch.isnan(values)
        scale = self.scale_of(values, observed)
        scaled = scale.apply(values).masked_fill(~observed, 0.0)
        return self.network(scaled), scale, RowScale.of(values, observed)

    def scale_of(self, values: Tensor, observed: Tensor, unobserved: Tensor | None = None) -> ObservedScale:
        """The scale of `[B, L]` that the config asks for; `unobserved` as in `ObservedScale`."""
        default = self.unobserved if unobserved is None else unobserved
        return ObservedScale(values, observed, self.scaler, floor=self.floor, unobserved=default)

    def distribution(self, out: Tensor, location: Tensor, scale: Tensor) -> Mixture:
        """What is forecast, `[B, T]`, in the units that location and scale `[B, 1]` lead to."""
        component = DISTRIBUTIONS[self.distribution_name][1](out)
        return Mixture(out.new_zeros(*out.shape[::2], 1), [component], location, scale)

    @property
    def log_loss(self) -> bool:
        """Whether the loss is a negative log density."""
        return bool(self.distribution_name) and self.objective == "own"

    def row_losses(self, batch: Batch) -> Tensor:
        """Squared error, or negative log likelihood, on the instance scale: the mean over the steps with a target.

        A model with a distribution that is tuned on mse takes the squared error of its median.

        Args:
            batch: with a target of at most the native horizon.

        Returns:
            `[B]`.
        """
        wanted = self.wanted(batch)
        steps = wanted.shape[1]
        out, scale, own = self(batch.context)
        location, factor = own.apply(scale.location), scale.scale / own.scale
        target: Tensor = own.apply(wanted)
        counted = ~torch.isnan(target)
        target = target.masked_fill(~counted, 0.0)
        if self.distribution_name and self.objective == "own":
            losses = -self.distribution(out[..., :steps], location, factor).log_prob(target)
        else:
            losses = (self.point(out)[:, :steps] * factor + location - target).square()
        return losses.masked_fill(~counted, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)

    def point(self, out: Tensor) -> Tensor:
        """The point forecast `[B, T]`; of a distribution its location, which is its median."""
        return out[:, 1] if self.distribution_name == "student_t" else out[:, 0]

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles, or the point forecast, `[B, Q, steps]`; beyond the native horizon the median is fed back."""
        self.check_batch(batch)
        context = fill_gaps(newest(unrounded(batch.context), self.context_length))
        blocks: list[Tensor] = []
        while len(blocks) * self.native_horizon < steps:
            out, scale, _ = self(context)
            median = scale.invert(self.point(out))
            quantiles = median[:, None]
            if self.distribution_name:
                found = self.distribution(out, scale.location, scale.scale).quantile(self.levels)
                quantiles = found.transpose(0, 1)
            blocks.append(quantiles)
            context = newest(torch.cat([context, median], dim=-1), self.context_length)
        return as_given(torch.cat(blocks, dim=-1)[..., :steps], batch.context)


def _refuse(config: Mapping[str, Any]) -> None:
    """What the public class offers and this family does not."""
    for name, wanted, why in (
        ("channel_attention", False, "series are forecast each by itself"),
        ("share_embedding", True, "rows do not say which channel they are"),
        ("share_projection", True, "rows do not say which channel they are"),
    ):
        if entry(config, name, bool, NAME, wanted) != wanted:
            raise TspruneError(f"config.json: {name} {not wanted} is not supported by family {NAME}: {why}")


def _one_of(config: Mapping[str, Any], name: str, known: tuple[str, ...], default: str) -> str:
    found: str = entry(config, name, str, NAME, default)
    if found not in known:
        raise TspruneError(f"config.json: {name} is {found!r}, expected one of {', '.join(known)}")
    return found


def _scaler(config: Mapping[str, Any]) -> str:
    """Name of the scaler; `True` stands for the mean, null and `False` for none."""
    written = config.get("scaling", "std")
    if written is None or isinstance(written, bool):
        return "mean" if written else "none"
    return _one_of(config, "scaling", ("std", "mean"), "std")


def _learned(config: Mapping[str, Any], width: int) -> bool:
    kind = _one_of(config, "positional_encoding_type", ("sincos", "random"), "sincos")
    if kind == "sincos" and width % 2:
        raise TspruneError(f"config.json: positional_encoding_type sincos needs an even d_model, found {width}")
    return kind == "random"


def _pooling(config: Mapping[str, Any]) -> str:
    written = config.get("pooling_type", "mean")
    return "all" if written is None else _one_of(config, "pooling_type", ("mean", "max"), "mean")


def _distribution(config: Mapping[str, Any]) -> str:
    return _one_of(config, "distribution_output", tuple(DISTRIBUTIONS), "student_t")


def _layer(config: Mapping[str, Any], width: int) -> EncoderLayer:
    heads = positive(config, "num_attention_heads", NAME)
    if width % heads:
        raise TspruneError(f"config.json: d_model {width} is not a multiple of num_attention_heads {heads}")
    eps = entry(config, "norm_eps", float, NAME, 1e-5)
    batch_norm = _one_of(config, "norm_type", ("batchnorm", "layernorm"), "batchnorm") == "batchnorm"
    path_dropout = entry(config, "path_dropout", float, NAME, 0.0)
    after = not entry(config, "pre_norm", bool, NAME, True)
    attention = Attention(
        width, heads, width // heads, bias=True, dropout=entry(config, "attention_dropout", float, NAME, 0.0)
    )
    feed = FeedForward(
        width, positive(config, "ffn_dim", NAME), act=entry(config, "activation_function", str, NAME, "gelu"),
        bias=entry(config, "bias", bool, NAME, True), dropout=entry(config, "ff_dropout", float, NAME, 0.0),
    )  # fmt: skip

    def branch(name: str, inner: Attention | FeedForward) -> Branch:
        norm = ChannelBatchNorm(width, eps) if batch_norm else nn.LayerNorm(width, eps=eps)
        return Branch(name, inner, norm, width, path_dropout, after=after)

    return EncoderLayer([branch("self_attn", attention), branch("ff", feed)])


FAMILY = PatchTST
