"""Least-squares repair of a cut: what is left of a block makes up for what goes, as far as it can."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tsprune.blocks.units import Block, named_blocks, own_name
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster, Kept

Model = TypeVar("Model", bound=Forecaster)
RIDGE = 0.01


def repair_masked(
    model: Forecaster, before: Kept, after: Kept, batches: Iterable[Batch], *, ridge: float = RIDGE
) -> None:
    """Refit the output projections of a model that is about to lose more units, in place.

    With X the inputs of a block's output projection W over all tokens, units outside `before` masked, and k the entries
    that stay, W'_k minimises `|X_k W'_k - X W|^2 + r |W'_k - W_k|^2`, r being `ridge` times the mean diagonal of
    X_k^T X_k. Only the Gram matrix X^T X is needed, so one forward pass serves every block. (The layer-wise
    reconstruction of optimal brain compression, arXiv 2208.11580, for whole columns at once.)

    Args:
        model: changed in the columns that stay of blocks that lose some of their units, but not all.
        before: units there up to now, by group name; a group that is not named is whole.
        after: units that stay, by group name, among those of `before`.
        batches: windows with targets, from the training part.
        ridge: pull towards the weights as they are, above 0.

    Raises:
        TspruneError: `ridge` is not positive, there is no batch, or the activations are not finite.
    """
    if not ridge > 0:
        raise TspruneError(f"the ridge of the repair is {ridge}, expected a number above 0")
    cut = _cut_blocks(model, before, after)
    with model.masked(before):
        grams = _gram_matrices(model, {path: block for path, (block, _) in cut.items()}, batches)
    for path, (block, entries) in cut.items():
        if path not in grams:
            # An expert that no token was sent to, or that is gone already: there is nothing to fit with.
            continue
        weight = _projection(block).weight
        entries = entries.to(weight.device)
        with torch.no_grad():
            weight[:, entries] = refitted(weight.double(), grams[path], entries, ridge).to(weight.dtype)


def repair(model: Model, kept: Kept, batches: Iterable[Batch], *, ridge: float = RIDGE) -> Model:
    """A copy of the uncut model, refitted for a cut in one go; arguments and errors as in `repair_masked`."""
    repaired = copy.deepcopy(model)
    repair_masked(repaired, {}, kept, batches, ridge=ridge)
    return repaired


def output_weights(model: Forecaster) -> dict[str, Tensor]:
    """Copies of what a repair can change, by name in the state dict."""
    return {
        f"{path}.{name}": value.detach().clone()
        for path, block in named_blocks(model)
        if block.output is not None
        for name, value in block.named_parameters()
        if value is block.output.weight
    }


def _projection(block: Block) -> nn.Linear:
    if block.output is None:
        raise TspruneError(f"{type(block).__name__} has no output projection to refit")
    return block.output


def refitted(weight: Tensor, gram: Tensor, entries: Tensor, ridge: float) -> Tensor:
    """The columns that stay, refitted; see `repair`.

    Args:
        weight: `[D, E]`, float64, of the uncut projection.
        gram: `[E, E]`, X^T X of its inputs.
        entries: `[K]`, indices of the inputs that stay.
        ridge: relative to the mean diagonal of the Gram matrix of what stays.

    Returns:
        `[D, K]`.
    """
    own = gram.index_select(0, entries).index_select(1, entries)
    pull = ridge * own.diagonal().mean()
    if not bool(pull > 0):
        # Nothing that stays was ever active: there is nothing to fit with.
        return weight.index_select(1, entries)
    wanted = weight @ gram.index_select(1, entries) + pull * weight.index_select(1, entries)
    regular = own + pull * torch.eye(len(entries), dtype=own.dtype, device=own.device)
    columns: Tensor = torch.linalg.solve(regular, wanted.T)
    return columns.T


def _cut_blocks(model: Forecaster, before: Kept, after: Kept) -> dict[str, tuple[Block, Tensor]]:
    """Blocks whose output projection loses some of its inputs but not all, with the inputs that stay."""
    found = {}
    for path, block in named_blocks(model):
        if block.output is None:
            continue
        local = {group.name: own_name(group.name, path) for group in block.groups(path)}
        chosen = {kind: after[name] for name, kind in local.items() if name in after}
        if not chosen:
            continue
        there = block.output_entries({kind: before[name] for name, kind in local.items() if name in before})
        entries = block.output_entries(chosen)
        if 0 < len(entries) < len(there):
            found[path] = (block, entries)
    return found


def _gram_matrices(model: Forecaster, blocks: Mapping[str, Block], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """X^T X over all tokens of the inputs of every block's output projection, summed in float64."""
    grams: dict[str, Tensor] = {}
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _collecting(blocks, grams):
            windows = sum(len(model.loss(batch.to(model.device))) for batch in batches)
    finally:
        model.train(training)
    if not windows:
        raise TspruneError("the repair needs at least one batch of windows, got none")
    if broken := [path for path, gram in grams.items() if not bool(torch.isfinite(gram).all())]:
        raise TspruneError(f"the activations of {broken[0]} are not finite; look for extreme values in the data")
    return grams


@contextmanager
def _collecting(blocks: Mapping[str, Block], grams: dict[str, Tensor]) -> Iterator[None]:
    def collector(path: str) -> Any:
        def collect(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].flatten(0, -2).float()
            grams[path] = grams.get(path, 0) + (x.T @ x).double()

        return collect

    handles = [_projection(block).register_forward_pre_hook(collector(path)) for path, block in blocks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
