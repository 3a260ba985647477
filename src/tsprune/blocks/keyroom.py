"""A cache of keys and values that knows from the start how many tokens will come."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tsprune.blocks.keycache import KeyCache


@dataclass
class KeyRoom(KeyCache):
    """A `KeyCache` with room for all tokens: a step writes its own and copies none of the earlier ones.

    For forecasts without gradient only, as it writes into tensors that earlier steps have read.

    Args:
        room: tokens that will come in all.
    """

    room: int = 0
    _keys: Tensor | None = field(default=None, repr=False)
    _values: Tensor | None = field(default=None, repr=False)

    def extended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values of new tokens behind those kept, and give all of them."""
        begin = self.length
        end = begin + key.shape[2]
        self._keys, self.key = _written(self._keys, key, begin, max(end, self.room))
        self._values, self.value = _written(self._values, value, begin, max(end, self.room))
        return self.key, self.value


def _written(kept: Tensor | None, new: Tensor, begin: int, room: int) -> tuple[Tensor, Tensor]:
    """What is kept of `[B, G, room, W]` with the new tokens in it, and the part of it that is filled."""
    if kept is None or kept.shape[2] < room:
        larger = new.new_empty(*new.shape[:2], room, new.shape[3])
        if kept is not None:
            larger[:, :, :begin] = kept[:, :, :begin]
        kept = larger
    end = begin + new.shape[2]
    kept[:, :, begin:end] = new
    return kept, kept[:, :, :end]
