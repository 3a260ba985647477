"""Small integers as a stream of bits without gaps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tsprune.errors import TspruneError

FEWEST, MOST = 2, 16
"""Bits that a code may have."""


def largest(bits: int) -> int:
    """Codes of that many bits go from minus this to this; one of the values of two's complement is not used."""
    if not FEWEST <= bits <= MOST:
        raise TspruneError(f"bits is {bits}, expected {FEWEST} to {MOST}")
    return int(2 ** (bits - 1) - 1)


def packed_size(count: int, bits: int) -> int:
    """Bytes of so many codes."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of any shape, each from `-largest(bits)` to `largest(bits)`, as uint8 `[packed_size]`.

    A code is stored plus `largest(bits)`, its highest bit first.
    """
    most = largest(bits)
    values = codes.reshape(-1).cpu().numpy().astype(np.int64) + most
    if len(values) and (values.min() < 0 or values.max() > 2 * most):
        raise TspruneError(f"codes reach {values.min() - most} and {values.max() - most}, {bits} bits hold +-{most}")
    spread = values.astype(">u2").view(np.uint8).reshape(-1, 2)
    return torch.from_numpy(np.packbits(np.unpackbits(spread, axis=1)[:, MOST - bits :]))


def unpack(stream: Tensor, bits: int, count: int) -> Tensor:
    """The way back: int32 `[count]`.

    Raises:
        TspruneError: the stream is not as long as so many codes are.
    """
    most = largest(bits)
    if len(stream) != packed_size(count, bits):
        raise TspruneError(f"{len(stream)} bytes, expected {packed_size(count, bits)} for {count} codes of {bits} bits")
    single = np.unpackbits(stream.cpu().numpy(), count=count * bits).reshape(count, bits)
    wide = np.zeros((count, MOST), dtype=np.uint8)
    wide[:, MOST - bits :] = single
    values = np.packbits(wide, axis=1).view(">u2").reshape(-1).astype(np.int32)
    return torch.from_numpy(values - most)
