"""Weights times the norm of what they read (Wanda, arXiv 2306.11695), for whole units (as in FLAP, 2312.11983)."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tsprune.blocks.units import Block, Part, UnitGroup
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import chosen_groups, frozen
from tsprune.scores._work import TOKENS, Totals, column_sums, count_windows, totals_over

NEEDS = "forward"


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = ("head", "ffn_channel"), seed: int = 0
) -> dict[str, Tensor]:
    """Sum over a unit's weights of |W_ij| times the norm of input j.

    The norm is the root of the sum of squares over all tokens of a window, as a mean over windows: Wanda's norm
    divided by the same number everywhere. Of the unit's weights those count that carry its output into the network,
    the columns of output and down projections: so a unit that never fires and one that is not read are both at 0.
    Query/key pairs have no such columns; both their sides count, by the geometric mean, as they are multiplied.
    Channels of a single map count that map's weights.

    Args:
        model: left as it was found.
        batches: windows with targets.
        kinds: kinds of units to score.
        seed: not used; part of every score's signature.

    Returns:
        For each group name `[U]`, float64.

    Raises:
        TspruneError: no batch, or the model has no unit of a wanted kind.
    """
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them: squares of the inputs of linear maps, by their path."""
    maps = linear_maps(model, chosen_groups(model, kinds))

    def step(portion: Batch) -> tuple[dict[str, Tensor], int]:
        with frozen(model), torch.no_grad(), input_squares(maps) as squares:
            model.loss(portion)
        return squares, count_windows(portion)

    return totals_over(model, batches, step)


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    groups = chosen_groups(model, kinds)
    means = totals.means()
    norms: dict[nn.Module, Tensor] = {
        layer: means[path].sqrt() for path, layer in linear_maps(model, groups).items() if path in means
    }
    return {name: _of_group(group, norms, _outputs(model)) for name, group in groups.items()}


def linear_maps(model: Forecaster, groups: Mapping[str, UnitGroup]) -> dict[str, nn.Linear]:
    """The linear maps whose inputs have to be known, by path."""
    outputs = _outputs(model)
    wanted = {part.layer for group in groups.values() for part in _counted(group, outputs)}
    return {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear) and m in wanted}


@contextmanager
def input_squares(maps: Mapping[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """Sums over all tokens of the squared inputs `[in]`, float64, of each map that is called meanwhile."""
    found: dict[str, Tensor] = {}
    # Queries, keys and values read the same tensor, one after the other. Nothing here keeps it alive.
    last: list[tuple[weakref.ref[Tensor], Tensor]] = []

    def collector(path: str) -> Any:
        def collect_one(layer: nn.Module, given: tuple[Any, ...]) -> None:
            x = given[0]
            if not last or last[0][0]() is not x:
                last[:] = [(weakref.ref(x), _squares(x.detach().flatten(0, -2)))]
            squares, reads = last[0][1], getattr(layer, "reads", None)
            squares = squares if reads is None else squares[reads.to(squares.device)]
            found[path] = found[path] + squares if path in found else squares

        return collect_one

    handles = [layer.register_forward_pre_hook(collector(path)) for path, layer in maps.items()]
    try:
        yield found
    finally:
        last.clear()
        for handle in handles:
            handle.remove()


def _squares(tokens: Tensor) -> Tensor:
    """Sums of squares over tokens `[n, in]`: `[in]`, float64; some tokens at a time, as squaring copies them."""
    total = torch.zeros(tokens.shape[1], dtype=torch.float64, device=tokens.device)
    for part in torch.split(tokens, TOKENS):
        wide = part.float() if part.dtype in (torch.bfloat16, torch.float16) else part
        total += column_sums(wide.square())
    return total


def _outputs(model: Forecaster) -> set[nn.Module]:
    """Output and down projections: the maps behind the gates of blocks."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    return {block.output for block in blocks if block.output is not None}


def _counted(group: UnitGroup, outputs: set[nn.Module]) -> list[Part]:
    """The parts of a group that count: those of output projections, or else of all its linear maps."""
    linear = [part for part in group.parts if isinstance(part.layer, nn.Linear)]
    return [part for part in linear if part.layer in outputs] or linear


def _of_group(group: UnitGroup, norms: Mapping[nn.Module, Tensor], outputs: set[nn.Module]) -> Tensor:
    counted = _counted(group, outputs)
    values = [_of_part(part, norms.get(part.layer), group.units) for part in counted]
    if not values:
        return torch.zeros(group.units, dtype=torch.float64)
    if len(values) == 1 or counted[0].layer in outputs:
        return torch.stack(values).sum(0)
    # Both sides of a product: it is 0 where one of them is.
    return len(values) * torch.stack(values).log().mean(0).exp()


def _of_part(part: Part, norm: Tensor | None, units: int) -> Tensor:
    """Sums for each unit, `[U]`; a map that was never called carries nothing."""
    if norm is None:
        return torch.zeros(units, dtype=torch.float64)
    sizes = part.weight.detach().abs()
    norm = norm.to(sizes.device)
    # Column by column the norm is one factor, so that no copy of the weight in float64 is needed.
    whole = sizes.double() @ norm if part.axis == 0 else sizes.sum(0, dtype=torch.float64) * norm
    return part.sum_by_unit(whole, units).cpu()
