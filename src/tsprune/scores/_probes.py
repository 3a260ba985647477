"""What a score needs to watch a forward pass: probes at gates, and which tokens of a branch count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.gate import Gate, Rows, gates_set
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import frozen
from tsprune.scores._work import Totals, column_sums, totals_over


def branch_of(model: nn.Module, path: str) -> Branch:
    """The residual branch that a block is in, or is."""
    names = path.split(".")
    for end in range(len(names), 0, -1):
        module = model.get_submodule(".".join(names[:end]))
        if isinstance(module, Branch):
            return module
    raise TspruneError(f"{path} is in no residual branch, so there is no residual input to compare with")


class Entrances:
    """What the residual branches were last given.

    A token counts unless the model itself hides it from all others, as it does with patches of the context that hold no
    observed value: no forecast depends on what is computed there. Attention is told which; a feed-forward
    branch takes over what the attention of its layer was told. Under a causal mask every token counts, since it may
    attend to itself.

    Attributes:
        live: for each branch, bool `[B or 1, T]`, which tokens count; None for all.
        norms: for each wanted branch `[B, T]`, length of the residual input, float32 or better.
    """

    def __init__(self, wanted: Sequence[Branch] = ()) -> None:
        self.live: dict[Branch, Tensor | None] = {}
        self.norms: dict[Branch, Tensor] = {}
        self._wanted = frozenset(wanted)

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[None]:
        """Look at every branch of the model for the duration of the block."""
        stacks = [layer.branches for layer in model.modules() if isinstance(layer, Layer)]
        stacked = {branch for branches in stacks for branch in branches}
        stacks += [[m] for m in model.modules() if isinstance(m, Branch) and m not in stacked]
        handles = []
        try:
            for branches in stacks:
                for place, branch in enumerate(branches):
                    earlier = branches[place - 1] if place else None
                    handles.append(branch.register_forward_pre_hook(self._hook(earlier), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, earlier: Branch | None) -> Any:
        def enter(branch: Branch, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            known = None if earlier is None else self.live.get(earlier)
            self.live[branch] = _told(named, known)
            if branch in self._wanted:
                x = given[0]
                wide = torch.float64 if x.dtype == torch.float64 else torch.float32
                self.norms[branch] = torch.linalg.vector_norm(x.detach(), dim=-1, dtype=wide)

        return enter


def _told(named: Mapping[str, Any], known: Tensor | None) -> Tensor | None:
    """Which tokens count by the inputs of a branch; `known` where these do not say."""
    if "observed" in named:
        found: Tensor | None = named["observed"]
        return found
    if "mask" in named and named.get("memory") is None:
        mask: Tensor | None = named["mask"]
        return None if mask is None else mask[:, 0].any(-2)
    return known


def token_sum(values: Tensor, live: Tensor | None) -> Tensor:
    """Sums over the tokens that count, and behind them the number of these tokens.

    Args:
        values: `[..., E]`, any dtype.
        live: bool, broadcastable to `[...]`, or None for all.

    Returns:
        `[E + 1]`, float64.
    """
    flat = values.reshape(-1, values.shape[-1])
    if live is not None:
        # Picked rather than multiplied by 0: what does not count may be infinite.
        flat = flat[live.expand(values.shape[:-1]).reshape(-1)]
    total = column_sums(flat)
    return torch.cat([total, total.new_tensor([float(len(flat))])])


def token_mean(sums: Tensor | None, units: int) -> Tensor:
    """Means `[U]` from what `token_sum` gave; 0 where there was no token, or nothing at all."""
    if sums is None:
        return torch.zeros(units, dtype=torch.float64)
    return sums[:-1] / sums[-1].clamp(min=1)


@dataclass(frozen=True)
class Visit:
    """What passes a gate once.

    Attributes:
        activation: `[..., E]`, without gradient.
        live: bool, broadcastable to `[...]`, tokens that count; None for all.
        norms: `[...]`, length of the residual input of the branch, where asked for.
    """

    activation: Tensor
    live: Tensor | None
    norms: Tensor | None


@dataclass(frozen=True)
class Reading:
    """A statistic to be read at a gate.

    Attributes:
        gate: where.
        branch: the residual branch the gate is in.
        read: makes sums over tokens, always of one shape, of a visit.
    """

    gate: Gate
    branch: Branch
    read: Callable[[Visit], Tensor]


def gate_sums(
    model: Forecaster, batches: Iterable[Batch], readings: Mapping[str, Reading], *, norms: bool = False
) -> Totals:
    """What the readings give, summed over all windows in one forward pass, by name.

    A name is missing where no token ever passed its gate.

    Args:
        model: left as it was found.
        batches: windows with targets.
        readings: by name.
        norms: whether visits come with the lengths of the residual inputs.
    """
    places: dict[Gate, list[str]] = {}
    for name, reading in readings.items():
        places.setdefault(reading.gate, []).append(name)
    wanted = [reading.branch for reading in readings.values()] if norms else []

    def step(portion: Batch) -> tuple[dict[str, Tensor], int]:
        found: dict[str, Tensor] = {}
        entrances = Entrances(wanted)

        def probe(names: list[str], activation: Tensor, rows: Rows | None) -> None:
            for name in names:
                branch = readings[name].branch
                # Tokens picked for an expert no longer tell their place in the sequence.
                live = entrances.live[branch] if rows is None else None
                visit = Visit(activation.detach(), live, entrances.norms.get(branch))
                read = readings[name].read(visit)
                found[name] = found[name] + read if name in found else read

        probes = {gate: partial(probe, names) for gate, names in places.items()}
        with frozen(model), torch.no_grad(), entrances.open(model), gates_set("probe", probes):
            windows = len(model.loss(portion))
        return found, windows

    return totals_over(model, batches, step)
