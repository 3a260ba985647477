"""Convolutions of width 1 over tokens: how some research code stores its feed-forward maps."""

from __future__ import annotations

from torch import Tensor

ENDS = (".conv1.weight", ".conv2.weight")


def as_maps(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their kernels `[out, in, 1]` as linear maps `[out, in]`; whatever else there is stays as it is."""
    wide = {n for n, t in tensors.items() if n.endswith(ENDS) and t.ndim == 3 and t.shape[-1] == 1}
    return {name: tensor.squeeze(-1) if name in wide else tensor for name, tensor in tensors.items()}


def as_convolutions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back, by public names."""
    return {name: tensor.unsqueeze(-1) if name.endswith(ENDS) else tensor for name, tensor in tensors.items()}
