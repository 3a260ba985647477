"""What every family can do, whatever its network looks like."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tsprune.blocks.folded import FoldedAttention
from tsprune.blocks.gate import Gate, gates_set
from tsprune.blocks.prepacked import prepacked
from tsprune.blocks.units import UnitGroup, check_floor, check_kept, named_blocks
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._names import Renames

TASK = "tsprune_task"
"""Entry of a tuned model's config: the horizon, context and so on that it was tuned and judged for."""

OBJECTIVE = "tsprune_objective"
"""Entry of the config of a model that is tuned on another loss than its family's own."""

Kept = Mapping[str, Sequence[int]]
"""Units that stay, by group name. A group that is not named stays whole."""


@dataclass(frozen=True)
class Capabilities:
    """What a family honours; anything else is refused, never dropped silently.

    Args:
        multivariate: several series of a window inform each other.
        past_covariates: rows that are known up to the forecast's beginning only.
        known_covariates: rows whose future is known.
        missing_values: gaps reach the network as such; else they are filled by straight lines between neighbours,
            and the run says so.
        quantiles: the model forecasts a spread; else its only level is 0.5 and every quantile equals it.
    """

    multivariate: bool = False
    past_covariates: bool = False
    known_covariates: bool = False
    missing_values: bool = True
    quantiles: bool = True


@dataclass(frozen=True)
class Checkpoint:
    """A public checkpoint of a family.

    Args:
        name: hub id, or where else it is published.
        millions: parameters in millions.
        licence: of the weights, as far as known.
        note: anything a user must know before taking it.
    """

    name: str
    millions: float
    licence: str
    note: str = ""


class Forecaster(nn.Module):
    """A model of one family: quantile forecasts, a loss per window, and the units that can be removed.

    Attributes:
        config: the public config, as read from or written to `config.json`.
        levels: quantile levels Q of its output.
        native_horizon: steps it forecasts in one pass; longer horizons are rolled out.
        patch: steps of one token of context.
        output_patch: steps of one output patch, where a shorter target is less work; None where it is not.
        window_rows: series that every window must have; 1 for a model that takes any number.
        objective: the loss it is tuned on, one of `objectives`.
        context_length: steps of context it uses at most; older ones are cut.
        kept: what stays of the model that the config describes, by group name, units that go along with others
            included; empty for an unpruned model.
        indexed: groups of channels on the residual width that were cut by an index, see `Plan`.
        notes: what was done to the model on the way in and that its user should know, one line each.
    """

    family: ClassVar[str]
    capabilities: Capabilities
    head_paths: ClassVar[tuple[str, ...]] = ()
    """Modules that turn the network's last state into forecasts: what trains when only the head does."""
    checkpoints: ClassVar[tuple[Checkpoint, ...]] = ()
    names: ClassVar[Renames] = Renames()
    """Public tensor names and ours."""
    objectives: ClassVar[tuple[str, ...]] = ("own",)
    """Losses it can be tuned on: `own`, that of its pretraining; `mse` of the point forecast, on the instance scale."""
    pretraining_corpora: tuple[str, ...] | None = None
    """What the model is known to have been pretrained on; None where nobody said. A family sets what its public
    checkpoints saw, the config of a model of our own says it itself."""

    config: dict[str, Any]
    levels: tuple[float, ...]
    native_horizon: int
    context_length: int
    patch: int = 1
    output_patch: int | None = None
    window_rows: int = 1
    objective: str = "own"

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, tuple[int, ...]] = {}
        self.indexed: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """Whether a `config.json` belongs to this family."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights; raises TspruneError naming a missing or impossible entry."""

    def tensors_from_public(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names and layout of a checkpoint file to ours; what we saved ourselves must pass as well.

        Called on a model that has the checkpoint's sizes already, but no memory.
        """
        return {self.names.ours(name): tensor for name, tensor in tensors.items()}

    def tensors_to_public(self) -> dict[str, Tensor]:
        """Our tensors under the names that the checkpoint files carry."""
        return {self.names.public(name): tensor for name, tensor in self.state_dict().items()}

    @abstractmethod
    def row_losses(self, batch: Batch) -> Tensor:
        """Training loss of each row `[B]` by `objective`; rows without target give 0.

        Values are on the scale of each row's own context, so that series in other units weigh alike.
        """

    @abstractmethod
    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]` in original units; longer than the native horizon is rolled out."""

    def check_batch(self, batch: Batch) -> None:
        """Raise TspruneError when the batch holds what this family would have to ignore."""
        able = self.capabilities
        if not able.known_covariates and batch.future is not None and not bool(torch.isnan(batch.future).all()):
            raise TspruneError(
                f"family {self.family} cannot use covariates, the batch has known future values; "
                "leave them out or use a family that can, such as chronos2"
            )
        if not able.past_covariates and batch.is_target is not None and not bool(batch.is_target.all()):
            count = int((~batch.is_target).sum())
            raise TspruneError(
                f"family {self.family} cannot use covariates, the batch has {count} covariate rows; "
                "leave them out or use a family that can, such as chronos2"
            )

    def check_native(self, steps: int) -> None:
        """Raise TspruneError when a loss needs more steps than one pass gives."""
        if steps > self.native_horizon:
            raise TspruneError(
                f"a target of {steps} steps is longer than the {self.native_horizon} steps this model gives "
                "in one pass; train on a shorter horizon"
            )

    def wanted(self, batch: Batch) -> Tensor:
        """The batch's target `[B, H]`; raises TspruneError when there is none, it is too long, or cannot be used."""
        if batch.target is None:
            raise TspruneError("the batch has no target; a loss needs one")
        self.check_batch(batch)
        self.check_native(batch.target.shape[1])
        return batch.target

    def loss(self, batch: Batch) -> Tensor:
        """Loss of each window `[N]`: the mean over its target rows. Without groups a row is a window."""
        rows = self.row_losses(batch)
        if batch.group_ids is None:
            return rows
        return window_mean(rows, batch)

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float] | None = None) -> Tensor:
        """Quantile forecasts without gradient, in eval mode; a model in eval mode is taken to be so in all its parts.

        Args:
            batch: context, groups and known futures; its target is not looked at.
            horizon: number of steps H, any positive number.
            levels: wanted quantile levels Q; None means the model's own. Levels between the model's are
                interpolated linearly, beyond them the outermost is used.

        Returns:
            `[B, Q, H]` in original units.
        """
        if horizon < 1:
            raise TspruneError(f"horizon is {horizon}, expected a positive number of steps")
        was_training = self.training
        # Setting the mode visits every module, gates too, which takes as long as a tenth of a small network's forecast.
        if was_training:
            self.eval()
        try:
            with torch.inference_mode():
                found = self.predict(batch, horizon)
        finally:
            if was_training:
                self.train()
        # An ordinary tensor, which may be changed and may stand beside ones that want gradients.
        quantiles = found.clone()
        return quantiles if levels is None else at_levels(quantiles, self.levels, levels)

    def unit_groups(self) -> dict[str, UnitGroup]:
        """Every group of units in the model, by name, in network order."""
        return {group.name: group for path, block in named_blocks(self) for group in block.groups(path)}

    def network_windows(self, batch: Batch) -> Tensor:
        """The window of each row that the network works on, `[rows of its first axis]`.

        The rows of the batch, unless the family lays the series of a window behind each other in one sequence. Gate
        gradients come by these rows.
        """
        return window_index(batch)

    def essential(self) -> list[list[str]]:
        """Sets of paths of attentions, of each of which at least one must keep a head.

        Such as all cross-attentions of a decoder: they are its only way to see the context.
        """
        return []

    def stored_once(self) -> list[list[str]]:
        """Sets of our tensors of which public checkpoints hold only the first, for all of them."""
        return []

    @contextmanager
    def prepacked(self) -> Iterator[Self]:
        """Forecast faster on a CPU for the duration of the block: see `tsprune.blocks.prepacked`.

        Worth it from about sixteen windows on. Weights must stay as they are meanwhile.
        """
        with prepacked(self):
            yield self

    @contextmanager
    def masked(self, kept: Kept) -> Iterator[Self]:
        """Switch off every unit that is not kept, for the duration of the block."""
        masks = self.gate_masks(kept)
        with gates_set("mask", {gate: None if bool((mask == 1).all()) else mask for gate, mask in masks.items()}):
            yield self

    def gate_masks(self, kept: Kept) -> dict[Gate, Tensor]:
        """The mask `[U]` of every gate of the named groups under which only the kept units are on.

        Raises:
            TspruneError: an unknown group or unit, or fewer units than a group's floor.
        """
        groups = self.unit_groups()
        gates: dict[Gate, Tensor] = {}
        for name, units in kept.items():
            if name not in groups:
                raise unknown_group(name, groups)
            group = groups[name]
            stays = torch.zeros(group.units)
            stays[check_floor(group, check_kept(units, group.units, name))] = 1.0
            for gate in group.gates:
                gates[gate] = gates.get(gate, torch.ones(gate.units)) * stays
        return gates

    @property
    def folded(self) -> dict[str, FoldedAttention]:
        """Attentions that are one linear map each, by path, in network order; see `tsprune.folding`."""
        return {path: module for path, module in self.named_modules() if isinstance(module, FoldedAttention)}

    @property
    def mixes_series(self) -> bool:
        """Whether the series of a group can still tell each other apart; a cut for single series may end that."""
        return True

    @property
    def log_loss(self) -> bool:
        """Whether the loss is a negative log density or probability, of which only differences mean something."""
        return False

    @property
    def task(self) -> Mapping[str, Any]:
        """What the model was tuned for, such as `horizon` and `context`; empty for a model that does not say."""
        told = self.config.get(TASK)
        return told if isinstance(told, Mapping) else {}

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def parameter_count(self) -> int:
        """Number of parameters, as tensors really are."""
        return sum(p.numel() for p in self.parameters())


def unknown_group(name: str, groups: Mapping[str, UnitGroup]) -> TspruneError:
    """The error for a group the model does not have."""
    shown = ", ".join(list(groups)[:5])
    return TspruneError(f"the model has no unit group {name!r}; it has {len(groups)}, beginning with {shown}")


def window_mean(rows: Tensor, batch: Batch) -> Tensor:
    """Mean of row values `[B]` over the target rows of each window; windows in order of first appearance."""
    index = window_index(batch)
    scored = torch.ones_like(rows) if batch.is_target is None else batch.is_target.to(rows.dtype)
    count = int(index.max()) + 1
    total = torch.zeros(count, dtype=rows.dtype, device=rows.device).index_add(0, index, rows * scored)
    number = torch.zeros(count, dtype=rows.dtype, device=rows.device).index_add(0, index, scored)
    return total / number.clamp(min=1)


def window_index(batch: Batch) -> Tensor:
    """Which window each row belongs to: `[B]` int64, windows numbered by first appearance."""
    if batch.group_ids is None:
        return torch.arange(batch.rows, device=batch.context.device)
    unique, inverse = torch.unique(batch.group_ids, return_inverse=True)
    first = torch.full((len(unique),), batch.rows, device=inverse.device)
    first = first.scatter_reduce(0, inverse, torch.arange(batch.rows, device=inverse.device), "amin")
    rank = torch.empty_like(first)
    rank[torch.argsort(first)] = torch.arange(len(unique), device=inverse.device)
    return rank[inverse]


def each_window(batch: Batch) -> Tensor:
    """Every window once: what `network_windows` is where a window is one row of the network."""
    index = window_index(batch)
    return torch.arange(int(index.max()) + 1, device=index.device)


def at_levels(quantiles: Tensor, own: Sequence[float], wanted: Sequence[float]) -> Tensor:
    """Quantiles `[B, Q, H]` at other levels: linear in the level, constant beyond the outermost."""
    if any(not 0 < level < 1 for level in wanted):
        raise TspruneError(f"quantile levels {list(wanted)[:5]} must lie strictly between 0 and 1")
    if tuple(wanted) == tuple(own):
        return quantiles
    right = [min(bisect_left(own, level), len(own) - 1) for level in wanted]
    left = [max(place - 1, 0) for place in right]
    shares = [
        min(max((level - own[low]) / (own[high] - own[low]), 0.0), 1.0) if high > low else 0.0
        for level, low, high in zip(wanted, left, right, strict=True)
    ]
    share = torch.tensor(shares, dtype=torch.float64).to(quantiles)[None, :, None]
    return torch.lerp(quantiles[:, left], quantiles[:, right], share)
