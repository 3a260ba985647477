"""Linear maps of which every patch size has its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Choice = list[tuple[int, Tensor | None]]
"""Number of a patch size and which tokens have it, bool `[B, T]`; None for all of them."""


def chosen_sizes(patch_size: Tensor, sizes: Sequence[int]) -> Choice:
    """Which of the known patch sizes occur, and where.

    Args:
        patch_size: `[B, T]` int64, patch size of each token; one that is not known, such as 0, is in no choice.
        sizes: the known ones.
    """
    found = torch.unique(patch_size).tolist()
    if len(found) == 1 and found[0] in sizes:
        return [(list(sizes).index(found[0]), None)]
    return [(number, patch_size == size) for number, size in enumerate(sizes) if size in found]


class PatchSizeLinear(nn.Module):
    """One linear map for each patch size, stored as one tensor (Moirai, 2402.02592).

    A patch size reads the first of the inputs and writes the first of the outputs; what is behind these is no weight of
    it. The bias reaches all outputs, also those behind, as in the public code.

    Args:
        inputs: inputs of each patch size; the widest gives I.
        outputs: outputs of each patch size; the widest gives O.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.weight = nn.Parameter(torch.zeros(len(inputs), max(outputs), max(inputs)))
        self.bias = nn.Parameter(torch.zeros(len(inputs), max(outputs)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal weights with the inverse square root of the fan-in as deviation; no bias."""
        for number, (read, written) in enumerate(zip(self.inputs, self.outputs, strict=True)):
            nn.init.normal_(self.weight[number, :written, :read], std=max(1, read) ** -0.5)

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """`[B, T, I]` to `[B, T, O]`; tokens of no known patch size become 0."""
        out = x.new_zeros(*x.shape[:-1], self.bias.shape[1])
        for number, where in choice:
            read, written = self.inputs[number], self.outputs[number]
            part = F.linear(x[..., :read], self.weight[number, :written, :read])
            part = F.pad(part, (0, out.shape[-1] - written)) + self.bias[number]
            out = part if where is None else torch.where(where[..., None], part, out)
        return out
