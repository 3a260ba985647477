"""How much a head writes into the residual stream, relative to what is there (2505.23195, statistics variant)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._masking import weight_in_use
from tsprune.scores._probes import Reading, Visit, branch_of, gate_sums, token_mean, token_sum
from tsprune.scores._taps import chosen_groups
from tsprune.scores._work import Totals

NEEDS = "forward"
KINDS = ("head", "kv_group")

Length = Callable[[Tensor], Tensor]


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = ("head",), seed: int = 0
) -> dict[str, Tensor]:
    """Mean over tokens of |O_h v_h(t)| / |x(t)|: a head's contribution to the stream over the stream's own length.

    v_h(t) is the head's output at token t, O_h the head's columns of the output map, x(t) the input of the residual
    branch, before its norm. A head below 0.05 counts as hardly used in the paper. A key/value group is all its heads
    together. Where the branch normalises its output before adding it, the ratio is taken before that norm.

    Tokens that no other token may attend to (patches without an observed value) do not count, nor do tokens whose x
    is 0. The mean is over all other tokens of all windows. The length comes from the d x d triangular
    factor L of the Gram matrix O_h^T O_h = L L^T, since |O_h v| = |L^T v|: nothing of residual width is formed.

    Args:
        model: left as it was found.
        batches: windows with targets.
        kinds: `head`, `kv_group` or both.
        seed: not used; part of every score's signature.

    Returns:
        For each group name `[U]`, float64, 0 or more.

    Raises:
        TspruneError: no batch, a kind this score cannot do, or one that the model does not have.
    """
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them: ratios of every unit, and the number of tokens."""
    return gate_sums(model, batches, readings(model, kinds), norms=True)


def readings(model: Forecaster, kinds: Sequence[str]) -> dict[str, Reading]:
    """What is read where, by group name; to be read with the lengths of the residual inputs."""
    found = {}
    for name, group in chosen_groups(model, kinds, KINDS, "head_norm").items():
        attention = model.get_submodule(group.path)
        if isinstance(attention, Attention):
            length = _unit_lengths(weight_in_use(attention.o), group.gates[0].owners, group.units)
            # The gate of the heads is the last before the output map: masks of every kind have been applied there.
            found[name] = Reading(attention.gate, branch_of(model, group.path), partial(_ratios, length))
    return found


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    groups = chosen_groups(model, kinds, KINDS, "head_norm")
    sums, _ = totals.result()
    return {name: token_mean(sums.get(name), group.units) for name, group in groups.items()}


def _ratios(length: Length, visit: Visit) -> Tensor:
    """Sums over tokens of the ratios, and the number of tokens: `[U + 1]`."""
    lengths = length(visit.activation)
    norms = lengths.new_ones(lengths.shape[:-1]) if visit.norms is None else visit.norms
    counted = norms > 0
    if visit.live is not None:
        counted = counted & visit.live
    return token_sum(lengths / norms[..., None], counted)


def _unit_lengths(weight: Tensor, owners: Tensor, units: int) -> Length:
    """A function from inputs of the output map `[..., E]` to the lengths of what each unit adds, `[..., U]`.

    Args:
        weight: `[D, E]`, float64.
        owners: `[E]`, the unit of each input.
        units: their number U.
    """
    columns = [(owners == unit).nonzero().flatten() for unit in range(units)]
    maps = [_length_map(_picked(weight, own)) for own in columns]

    def length(x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        found = tokens.new_zeros(len(tokens), units)
        for unit, (own, mapping) in enumerate(zip(columns, maps, strict=True)):
            if len(own):
                found[:, unit] = torch.linalg.vector_norm(_picked(tokens, own) @ mapping.to(tokens), dim=-1)
        return found.view(*x.shape[:-1], units)

    return length


def _length_map(weight: Tensor) -> Tensor:
    """L `[d, <= d]` with |W v| = |v L| for a weight W `[D, d]`: L L^T is the Gram matrix W^T W."""
    lower, failed = torch.linalg.cholesky_ex(weight.T @ weight)
    # Columns that depend on each other, as in dead heads, have no Cholesky factor; QR is slower.
    mapping: Tensor = torch.linalg.qr(weight, mode="r")[1].T if bool(failed) else lower
    return mapping


def _picked(tokens: Tensor, own: Tensor) -> Tensor:
    """Some columns of `[n, E]`, without a copy where they lie side by side."""
    first, count = (int(own[0]) if len(own) else 0), len(own)
    side_by_side = not count or int(own[-1]) - first == count - 1
    return tokens[:, first : first + count] if side_by_side else tokens.index_select(1, own.to(tokens.device))
