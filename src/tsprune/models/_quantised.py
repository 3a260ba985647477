"""Checkpoints whose weights are small integers: one file that serves several widths.

A weight matrix is stored as codes of the widest width, as a stream of bits, under its public name and `.codes`. A
narrower code is the wide one rounded once more. For every width there is a scale for each row of the matrix (an output
channel), `.scale.BITS`, and where some row was corrected an offset, `.offset.BITS`: weight = scale * code + offset.
Everything else (biases, norms, routers, small tables) is stored as it is. On loading, weights of the chosen width are
turned into floating point: the file is smaller, the model in memory is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tsprune.errors import TspruneError
from tsprune.models._packedbits import FEWEST, MOST, largest, unpack

ENTRY = "tsprune_quantised"
"""Entry of the config of such a checkpoint."""
CODES, SCALE, OFFSET = ".codes", ".scale", ".offset"


@dataclass(frozen=True)
class Layout:
    """What the entry of the config says.

    Args:
        bits: widths that can be read, the widest first; codes are stored at that.
        correction: which rows have their mean and variance restored, for people.
        shapes: shape of every weight that is stored as codes, by public name.
    """

    bits: tuple[int, ...]
    correction: str
    shapes: Mapping[str, tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        """The entry."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"bits": list(self.bits), "correction": self.correction, "shapes": shapes}

    def width(self, wanted: int | None, where: Path | str) -> int:
        """The width to read: the one that is wanted, else the widest.

        Raises:
            TspruneError: the file does not have it.
        """
        if wanted is not None and wanted not in self.bits:
            raise TspruneError(f"{where}: bits is {wanted}, this model can be read at {_listed(self.bits)}")
        return self.bits[0] if wanted is None else wanted


def layout_of(config: Mapping[str, Any], where: Path | str) -> Layout | None:
    """The layout that a config tells; None for a checkpoint of plain numbers.

    Raises:
        TspruneError: the entry is damaged.
    """
    if ENTRY not in config:
        return None
    found, wrong = config[ENTRY], f"{where}: entry {ENTRY!r}"
    if not isinstance(found, Mapping):
        raise TspruneError(f"{wrong} is {type(found).__name__}, expected bits, correction and shapes")
    bits, shapes, said = found.get("bits"), found.get("shapes"), found.get("correction")
    if not isinstance(bits, list) or not bits or not all(type(b) is int and FEWEST <= b <= MOST for b in bits):
        raise TspruneError(f"{wrong}: bits is {bits!r}, expected whole numbers from {FEWEST} to {MOST}")
    if not isinstance(said, str):
        raise TspruneError(f"{wrong}: correction is {said!r}, expected a text")
    if not isinstance(shapes, Mapping) or not all(
        isinstance(shape, list) and shape and all(type(size) is int and size >= 0 for size in shape)
        for shape in shapes.values()
    ):
        raise TspruneError(f"{wrong}: shapes must map names of tensors to lists of sizes")
    ordered = tuple(sorted(set(bits), reverse=True))
    return Layout(ordered, said, {name: tuple(shape) for name, shape in shapes.items()})


def narrowed(codes: Tensor, before: int, bits: int) -> Tensor:
    """Codes of fewer bits, int32: the wide ones on the coarser grid, rounded to the nearest."""
    if bits == before:
        return codes.int()
    return (codes.double() * (largest(bits) / largest(before))).round().int()


def weights_of(codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Weights `[R, C]`, float32, of codes `[R, C]`, scales and offsets `[R]`."""
    found = codes.double() * scale.double()[:, None]
    return (found if offset is None else found + offset.double()[:, None]).float()


def plain_tensors(tensors: Mapping[str, Tensor], layout: Layout, bits: int, where: Path | str) -> dict[str, Tensor]:
    """Tensors of a file under their public names, weights of one width in floating point.

    Args:
        tensors: of the file.
        layout: see `layout_of`.
        bits: one of its widths.
        where: file named in errors.

    Raises:
        TspruneError: codes, scales or offsets are missing or do not fit.
    """
    found = dict(tensors)
    for name, shape in layout.shapes.items():
        parts = {part: found.pop(f"{name}{part}", None) for part in (CODES, f"{SCALE}.{bits}", f"{OFFSET}.{bits}")}
        stream, scale, offset = parts.values()
        if stream is None or scale is None:
            raise TspruneError(f"{where}: {name} lacks {CODES if stream is None else f'{SCALE}.{bits}'}; restore it")
        for other in layout.bits:
            found.pop(f"{name}{SCALE}.{other}", None)
            found.pop(f"{name}{OFFSET}.{other}", None)
        rows, count = len(scale), math.prod(shape)
        if (count % rows if rows else count) or (offset is not None and offset.shape != scale.shape):
            raise TspruneError(f"{where}: {name} of shape {list(shape)} does not fit {rows} scales; restore the file")
        try:
            codes = narrowed(unpack(stream, layout.bits[0], count), layout.bits[0], bits)
        except TspruneError as error:
            raise TspruneError(f"{where}: {name}{CODES} has {error}; restore the file") from None
        found[name] = weights_of(codes.view(rows, count // rows if rows else 0), scale, offset).view(shape)
    return found


def _listed(bits: Sequence[int]) -> str:
    return " ".join(map(str, bits)) + " bits"
