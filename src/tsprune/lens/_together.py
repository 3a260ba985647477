"""Several ablations in one forward pass: windows repeated along the batch, every copy with units of its own off.

Small batches leave a processor idle between its operations, and a repeated batch fills it. Letters: K ablations,
n windows or rows of a portion, U units of a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tsprune.blocks.gate import Gate, OtherRows, gates_set
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._work import count_windows, is_out_of_memory

Masks = Mapping[Gate, Tensor]
"""What takes the place of the masks that gates have, `[U]` each."""
Work = Callable[[Batch], Tensor]
"""Values of a portion, those of a window behind those of the window before it: `[n, ...]`."""
TOKENS = {"cpu": 512}
"""Context tokens of a pass up to which ablations share it; see benchmarks/ablation_batches.py."""
ELSEWHERE = 16 * 1024
"""The same for accelerators, on which only memory sets a limit."""


class Together:
    """How many ablations share a pass; it learns from passes that failed.

    Args:
        model: whose units are switched off.
        tokens: context tokens that a shared pass may have; None means as many as pay on the model's device.
    """

    def __init__(self, model: Forecaster, tokens: int | None = None) -> None:
        self.model = model
        self.tokens = TOKENS.get(model.device.type, ELSEWHERE) if tokens is None else tokens
        # None until a pass shows that fewer is all there can be.
        self.most: int | None = None

    def at_once(self, portion: Batch) -> int:
        """Ablations that share a pass over a portion: 1 where the portion is large enough by itself."""
        steps = min(portion.context.shape[1], self.model.context_length)
        room = self.tokens // max(1, portion.rows * -(-steps // self.model.patch))
        return max(1, room if self.most is None else min(room, self.most))

    def values(self, portion: Batch, several: Sequence[Masks], work: Work) -> Tensor:
        """What `work` says of a portion under each of several sets of masks: `[K, n, ...]`.

        Equal to one pass after the other up to rounding. These are taken one by one where a gate sees other rows than
        those of the network, such as paths of a roll-out, or where a shared pass runs out of memory.

        Args:
            portion: windows, on the model's device.
            several: masks by gate.
            work: values of any windows; looks at nothing but the batch and the model.
        """
        found: list[Tensor] = []
        waiting = list(several)
        while waiting:
            # Passes of equal size rather than full ones and a rest.
            passes = -(-len(waiting) // self.at_once(portion))
            count = -(-len(waiting) // passes)
            try:
                found += self._pass(portion, waiting[:count], work)
            except OtherRows:
                self.most = 1
            except RuntimeError as error:
                if count == 1 or not is_out_of_memory(error):
                    raise
                self.most = count // 2
            else:
                del waiting[:count]
        return torch.stack(found)

    def _pass(self, portion: Batch, several: Sequence[Masks], work: Work) -> Sequence[Tensor]:
        if len(several) == 1:
            with gates_set("mask", several[0]):
                return [work(portion)]
        whole = portion.repeated(len(several))
        copy = self.model.network_windows(whole) // count_windows(portion)
        with gates_set("mask", _by_row(several, copy)):
            return work(whole).chunk(len(several))


def _by_row(several: Sequence[Masks], copy: Tensor) -> dict[Gate, Tensor]:
    """Masks for the rows of the network `[B, U]`, of which each belongs to a copy of the windows `[B]`."""
    found = {}
    for gate in {gate: None for masks in several for gate in masks}:
        usual = torch.ones(gate.units) if gate.mask is None else gate.mask
        found[gate] = torch.stack([masks.get(gate, usual).to(copy.device) for masks in several])[copy]
    return found
