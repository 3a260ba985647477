"""Low-rank adapters on attention and feed-forward maps, through peft, merged into an ordinary model."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.folded import FoldedAttention
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.settings import FinetuneSettings
from tsprune.tuning_modes import Trainee, Values

NAME = "default"
"""What peft calls an adapter that is given no name."""


class AdapterTrainee(Trainee):
    """Adapters train, all else is frozen: a map W becomes W + alpha / rank * B A, with B zero at first.

    (LoRA, arXiv 2106.09685.) Every linear map of the attention and feed-forward blocks gets one, but for maps that
    pruning has left without inputs or outputs. What is validated and handed back is an ordinary model, the product
    added to its weights, with the tensor names of the model that came.

    Args:
        model: dense or slim; not changed.
        settings: `lora_rank`, `lora_alpha` and `dropout` are read.
        seed: of the first A.

    Raises:
        TspruneError: peft is not installed, or no map is left that could be adapted.
    """

    def __init__(self, model: Forecaster, settings: FinetuneSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.plain = copy.deepcopy(model).float()
        super().__init__(model, settings.dropout)
        self.settle()

    def choose(self) -> None:
        """Put the adapters in; they alone train."""
        self.network.requires_grad_(False)
        self.paths = adapted_paths(self.network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            _inject(self.network, self.paths, self.settings)
        self.layers: dict[str, Any] = {path: self.network.get_submodule(path) for path in self.paths}
        for layer in self.layers.values():
            _follow_indices(layer)

    @property
    def stored(self) -> nn.Module:
        """The adapters alone: the rest is known from the model that training started from."""
        return nn.ParameterList(self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """The parameters of the adapters."""
        return {name: p.detach() for name, p in self.network.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def settle(self) -> None:
        """Channels that were pruned by zeroing stay zero: the adapters add nothing there."""
        for layer in self.layers.values():
            dead = getattr(layer.base_layer, "dead", {})
            layer.lora_A[NAME].weight[:, list(dead.get("in_channel", ()))] = 0
            layer.lora_B[NAME].weight[list(dead.get("out_channel", ()))] = 0

    @torch.no_grad()
    def _merge(self) -> None:
        for path, layer in self.layers.items():
            target: Any = self.plain.get_submodule(path)
            target.weight.copy_(layer.base_layer.weight + layer.get_delta_weight(NAME))

    @contextmanager
    def holding(self, values: Values) -> Iterator[Forecaster]:
        """The ordinary model with adapters of these values merged in, for the duration of the block."""
        before = self.values()
        self.load(values)
        self._merge()
        self.load(before)
        yield self.plain

    def ordinary(self, values: Values) -> Forecaster:
        """The ordinary model with adapters of these values merged in, in eval mode; training is over then."""
        self.load(values)
        self._merge()
        self.network, self.layers = self.plain, {}
        return self.plain.requires_grad_(True).eval()


def adapted_paths(model: Forecaster, flag: str = "--tuning lora", cure: str = "use --tuning full or head") -> list[str]:
    """Paths of the linear maps that get adapters: all of attention and feed-forward with inputs and outputs.

    Raises:
        TspruneError: there is none; with this flag and cure.
    """
    found = [
        f"{path}.{name}"
        for path, block in model.named_modules()
        if isinstance(block, Attention | FoldedAttention | FeedForward)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and layer.in_features and layer.out_features
    ]
    if not found:
        raise TspruneError(
            f"{flag}: nothing is left in this model's attention and feed-forward blocks to adapt; {cure}"
        )
    return found


def check_peft(flag: str = "--tuning lora", cure: str = "use --tuning full or head") -> None:
    """Raise TspruneError, with this flag and cure, unless peft can be imported; importing it takes seconds."""
    import importlib.util

    if importlib.util.find_spec("peft") is None:
        raise TspruneError(
            f"{flag} needs the package peft, which is not installed; pip install 'tsprune[lora]', or {cure}"
        )


def _inject(network: Forecaster, paths: list[str], settings: FinetuneSettings) -> None:
    """Replace the maps by peft's layers, in place."""
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    chosen = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, lora_dropout=0.0, target_modules=_pattern(paths)
    )
    inject_adapter_in_model(chosen, network)


def _pattern(paths: list[str]) -> str:
    """A regular expression that fits these paths and no others: names in a list would fit as endings, too."""
    return "|".join(map(re.escape, paths))


def _follow_indices(layer: Any) -> None:
    """Let an adapter read and write the entries that its map reads and writes, where that goes by an index."""
    base = layer.base_layer
    reads: Any = getattr(base, "reads", None)
    writes: Any = getattr(base, "writes", None)

    def pick(_: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        return given[0].index_select(-1, reads.to(given[0].device))

    def place(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        whole = out.new_zeros(*out.shape[:-1], base.span)
        return whole.index_copy(-1, writes.to(out.device), out)

    if reads is not None:
        layer.lora_A[NAME].register_forward_pre_hook(pick)
    if writes is not None:
        layer.lora_B[NAME].register_forward_hook(place)
