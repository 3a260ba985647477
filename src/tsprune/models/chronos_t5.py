"""Chronos-T5 (amazon/chronos-t5-*): values as tokens of a T5 encoder-decoder that samples the future token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.prepacked import Linear
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._bins import CLASS, UniformBins
from tsprune.models._config import entry
from tsprune.models._corpora import CHRONOS
from tsprune.models._forecaster import Capabilities, Checkpoint, Forecaster
from tsprune.models._fresh import fresh_weights
from tsprune.models._rollout import empirical_quantiles
from tsprune.models._sampling import Sampling, common_uniforms
from tsprune.models._t5 import (
    Context,
    LayerCache,
    Parts,
    cross_attentions,
    tables,
    with_one_embedding,
    with_own_tables,
    with_shared_tables,
)

MISSING = -100
"""Label of a target that is not there."""
PATHS_AT_ONCE = 256
"""Sample paths that are drawn side by side; what they keep of earlier steps is what takes memory."""

Choose = Callable[[Tensor, int], Tensor]
"""Picks tokens `[B, S]` by logits `[B, S, V]` and the number of the step."""


class ChronosT5(Forecaster):
    """The Chronos-T5 network under the tensor names of the public checkpoint.

    Public checkpoints store one table of relative biases per stack, in block 0; here every self-attention owns its
    table, see `tsprune.models._t5`.

    Attributes:
        num_samples: sample paths that a forecast's quantiles are taken of.
        seed: of the random numbers that all rows share, see `common_uniforms`: a row's forecast depends on nothing
            but its context.
        sampling: how tokens are drawn.
    """

    family = "chronos_t5"
    capabilities = Capabilities()
    checkpoints = (
        Checkpoint("amazon/chronos-t5-tiny", 8.39, "Apache-2.0"),
        Checkpoint("amazon/chronos-t5-mini", 20.46, "Apache-2.0"),
        Checkpoint("amazon/chronos-t5-small", 46.15, "Apache-2.0"),
        Checkpoint("amazon/chronos-t5-base", 201.37, "Apache-2.0"),
        Checkpoint("amazon/chronos-t5-large", 708.96, "Apache-2.0"),
    )
    pretraining_corpora = CHRONOS

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        section = entry(config, "chronos_config", dict, self.family)
        self.config = dict(config)
        if (kind := entry(section, "model_type", str, self.family, "seq2seq")) != "seq2seq":
            raise TspruneError(f"config.json: model_type is {kind!r}, family {self.family} has only seq2seq models")
        self.bins = UniformBins.of(section, self.family)
        self.sampling = Sampling.of(section, self.family)
        self.levels = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
        self.context_length = entry(section, "context_length", int, self.family)
        self.native_horizon = entry(section, "prediction_length", int, self.family)
        self.num_samples = entry(section, "num_samples", int, self.family, 20)
        if min(self.native_horizon, self.context_length, self.num_samples) < 1:
            raise TspruneError("config.json: context_length, prediction_length and num_samples must be positive")
        self.seed = 0
        vocabulary = entry(config, "vocab_size", int, self.family, self.bins.tokens)
        self.pad = entry(config, "pad_token_id", int, self.family, 0)
        self.start = entry(config, "decoder_start_token_id", int, self.family, self.pad)
        if vocabulary < self.bins.tokens or max(self.pad, self.start) >= vocabulary:
            raise TspruneError(
                f"config.json: vocab_size {vocabulary} must hold the {self.bins.tokens} ids of n_tokens, pad_token_id "
                f"{self.pad} and decoder_start_token_id {self.start}"
            )
        self.parts = parts = Parts(config, self.family)
        self.shared = nn.Embedding(vocabulary, parts.width)
        self.encoder = parts.encoder()
        self.decoder = parts.token_decoder()
        tied = entry(config, "tie_word_embeddings", bool, self.family, True)
        # Older files do not say it: there it goes with the tied embedding.
        self.scaled = entry(config, "scale_decoder_outputs", bool, self.family, tied)
        self.lm_head = None if tied else Linear(parts.width, vocabulary, bias=False)
        # A tied embedding is the forecast head too.
        self.head_paths = ("shared",) if tied else ("lm_head",)  # type: ignore[misc]
        fresh_weights(self, parts.head_width, parts.encoder_depth)
        if tied and not self.scaled:
            nn.init.normal_(self.shared.weight, std=parts.width**-0.5)

    def essential(self) -> list[list[str]]:
        """The cross-attentions: without any, the decoder would not see the context."""
        return [cross_attentions(len(self.decoder.block))]

    def stored_once(self) -> list[list[str]]:
        """The tables of relative biases of each stack."""
        return tables(self.state_dict())

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """A T5 with this tokeniser."""
        section = config.get("chronos_config")
        bins = isinstance(section, Mapping) and section.get("tokenizer_class") == CLASS
        named = "T5ForConditionalGeneration" in (config.get("architectures") or [])
        return bins and (named or config.get("model_type") == "t5")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)

    def tensors_from_public(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """One token embedding, a table of relative biases for every block, a head only where it is not tied.

        Newer public configs call every embedding tied; a stored head that differs from it shows that it is not.
        """
        ours = with_own_tables(with_one_embedding(tensors))
        head, shared = ours.get("lm_head.weight"), ours.get("shared.weight")
        if self.lm_head is not None or head is None or shared is None:
            return ours
        if torch.equal(head, shared):
            del ours["lm_head.weight"]
            return ours
        self.lm_head = Linear(head.shape[1], head.shape[0], bias=False, device=self.device)
        self.head_paths = ("lm_head",)  # type: ignore[misc]
        self.config |= {"tie_word_embeddings": False, "scale_decoder_outputs": self.scaled}
        self.notes += ("config.json says the head is tied to the embedding, the file holds another head: that is used",)
        return ours

    def tensors_to_public(self) -> dict[str, Tensor]:
        """Our tensors, without tables of relative biases that equal that of block 0."""
        return with_shared_tables(self.state_dict())

    def encode(self, context: Tensor) -> Context:
        """Run the encoder over `[B, L]`, original units, NaN = missing; only the last `context_length` steps count."""
        context = context[:, -self.context_length :]
        scale = self.bins.scale(context)
        ids = self.bins.with_end(self.bins.encode(context, scale))
        seen = F.pad(~torch.isnan(context), (0, ids.shape[1] - context.shape[1]), value=True)
        allowed = None if bool(seen.all()) else seen[:, None, None, :]
        buckets = self.parts.distances(ids.shape[1], ids.device, bidirectional=True)
        return Context(self.encoder(self.shared(ids), allowed, buckets), allowed, scale)

    def labels(self, target: Tensor, scale: Tensor) -> Tensor:
        """Token ids `[B, H]` of a target, `MISSING` where it is NaN.

        The id that ends a series follows where the target has the whole native horizon, as in pretraining.
        """
        ids = self.bins.encode(target, scale).masked_fill(torch.isnan(target), MISSING)
        return self.bins.with_end(ids) if target.shape[1] == self.native_horizon else ids

    def forward(self, context: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a known target's tokens, each from the context and the tokens before it.

        Args:
            context: `[B, L]`, original units, NaN = missing.
            target: `[B, H]`, the same.

        Returns:
            Logits `[B, H or H + 1, V]` and labels of that length, see `labels`.
        """
        known = self.encode(context)
        labels = self.labels(target, known.scale)
        before = F.pad(labels[:, :-1], (1, 0), value=self.start)
        before = before.masked_fill(before == MISSING, self.pad)
        length = labels.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=labels.device).tril()[None, None]
        buckets = self.parts.distances(length, labels.device, bidirectional=False)
        states = self.decoder(self.shared(before), known.memory, known.allowed, earlier, buckets)
        return self._logits(states), labels

    def _logits(self, states: Tensor) -> Tensor:
        """Logits `[..., V]` in float32 or better."""
        weight = self.shared.weight if self.lm_head is None else self.lm_head.weight
        logits = F.linear(states * self.parts.width**-0.5 if self.scaled else states, weight)
        return logits if logits.dtype == torch.float64 else logits.float()

    @property
    def log_loss(self) -> bool:
        """Whether the loss is a negative log probability."""
        return True

    def row_losses(self, batch: Batch) -> Tensor:
        """Cross-entropy of the target's tokens, averaged over those that are observed, the end among them.

        Args:
            batch: with a target of at most the native horizon.

        Returns:
            `[B]`.
        """
        wanted = self.wanted(batch)
        logits, labels = self(batch.context, wanted)
        # A row without target gives 0: the end alone says nothing.
        labels = labels.masked_fill(torch.isnan(wanted).all(-1, keepdim=True), MISSING)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=MISSING, reduction="none")
        means: Tensor = losses.view_as(labels).sum(-1) / (labels != MISSING).sum(-1).clamp(min=1)
        return means

    def generate(self, context: Tensor, choose: Choose, paths: int, steps: int) -> tuple[Tensor, Tensor]:
        """Continue every row token by token.

        The context is encoded once, and keys and values are kept. The id that ends a series is never chosen.

        Args:
            context: `[B, L]`, original units, NaN = missing.
            choose: picks the next tokens.
            paths: continuations S of each row.
            steps: tokens of each.

        Returns:
            Token ids `[B, S, steps]` and the scale `[B, 1]`.
        """
        known = self.encode(context)
        caches = [LayerCache(steps) for _ in self.decoder.block]
        buckets = self.parts.distances(steps, context.device, bidirectional=False)
        newest = torch.full((context.shape[0], paths), self.start, device=context.device)
        found = []
        for step in range(steps):
            states = self.decoder.step(self.shared(newest), known, buckets[step : step + 1, : step + 1], caches)
            logits = self._logits(states)
            logits[..., self.bins.end] = -torch.inf
            newest = choose(logits, step)
            found.append(newest)
        return torch.stack(found, dim=-1), known.scale

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]` of sampled paths; beyond the native horizon their median joins the context."""
        self.check_batch(batch)
        uniforms = common_uniforms(self.num_samples, steps, self.seed).to(batch.context.device)
        rows = max(1, PATHS_AT_ONCE // self.num_samples)
        paths = [self._paths(context, uniforms) for context in torch.split(batch.context, rows)]
        return empirical_quantiles(torch.cat(paths), self.levels)

    def _paths(self, context: Tensor, uniforms: Tensor) -> Tensor:
        """Sample paths `[B, S, steps]` in original units, by random numbers `[S, steps]`."""
        blocks = []
        for given in torch.split(uniforms, self.native_horizon, dim=1):

            def choose(logits: Tensor, step: int, given: Tensor = given) -> Tensor:
                return self.sampling.draw(logits, given[:, step])

            ids, scale = self.generate(context, choose, *given.shape)
            blocks.append(self.bins.decode(ids, scale))
            middle = blocks[-1].median(dim=1).values
            context = torch.cat([context, middle.to(context.dtype)], dim=1)[:, -self.context_length :]
        return torch.cat(blocks, dim=-1)


FAMILY = ChronosT5
