"""Which rows and columns of an attention's maps belong to which head, pair and value entry."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from typing import TypeVar

import torch
from torch import Tensor

from tsprune.blocks.units import as_index

Found = TypeVar("Found")


def _ordinary(make: Callable[[HeadShape], Found]) -> Callable[[HeadShape], Found]:
    """What is kept must be fit for use with gradients, also when it is first asked for in inference mode."""

    @wraps(make)
    def made(shape: HeadShape) -> Found:
        with torch.inference_mode(False):
            return make(shape)

    return made


@dataclass(frozen=True)
class HeadShape:
    """Sizes of an attention in which every key and value head may have widths of its own.

    Rows of the query map lie head by head, those of the key and value maps key/value head by key/value head. Inside a
    head, queries and keys have the first members of all pairs, then the second members, or the members of a pair side
    by side.

    Args:
        kv_of_head: for each query head the key/value head it reads; H entries.
        pairs: for each key/value head the numbers of the query/key pairs it has left, as the rotary table counts.
        values: for each key/value head the number of value entries it has left.
        members: entries of one pair: 2 where rotary positions turn them together, else 1.
        neighbours: whether the members of a pair lie side by side.
    """

    kv_of_head: tuple[int, ...]
    pairs: tuple[tuple[int, ...], ...]
    values: tuple[int, ...]
    members: int
    neighbours: bool = False

    @classmethod
    @lru_cache(maxsize=64)
    def full(
        cls, heads: int, kv_heads: int, width: int, value_width: int, members: int, neighbours: bool = False
    ) -> HeadShape:
        """The shape before any cut: heads share key/value heads in equal runs.

        The layers of a network share one, and with it the indices that are made once.
        """
        share = heads // kv_heads if kv_heads else 1
        return cls(
            tuple(head // share for head in range(heads)),
            tuple(tuple(range(width // members)) for _ in range(kv_heads)),
            (value_width,) * kv_heads,
            members,
            neighbours,
        )

    @property
    def heads(self) -> int:
        """Query heads H."""
        return len(self.kv_of_head)

    @property
    def kv_heads(self) -> int:
        """Key/value heads G."""
        return len(self.pairs)

    @property
    def pair_count(self) -> int:
        """Query/key pairs of all key/value heads."""
        return sum(map(len, self.pairs))

    @property
    def even(self) -> bool:
        """Whether all value heads are equally wide."""
        return len(set(self.values)) < 2

    @cached_property
    @_ordinary
    def head_of_q(self) -> Tensor:
        """Query head of each query row."""
        return _repeat(range(self.heads), [self._width(g) for g in self.kv_of_head])

    @cached_property
    @_ordinary
    def pair_of_q(self) -> Tensor:
        """Pair of each query row; pairs are counted over all key/value heads."""
        return _rows(self._pair_rows(), self.kv_of_head)

    @cached_property
    @_ordinary
    def pair_of_k(self) -> Tensor:
        """Pair of each key row."""
        return _rows(self._pair_rows(), range(self.kv_heads))

    @cached_property
    @_ordinary
    def kv_of_pair(self) -> Tensor:
        """Key/value head of each pair."""
        return _repeat(range(self.kv_heads), [len(pairs) for pairs in self.pairs])

    @cached_property
    @_ordinary
    def kv_of_value(self) -> Tensor:
        """Key/value head of each value row."""
        return _repeat(range(self.kv_heads), self.values)

    @cached_property
    @_ordinary
    def head_of_column(self) -> Tensor:
        """Query head of each column of the output map."""
        return _repeat(range(self.heads), [self.values[g] for g in self.kv_of_head])

    @cached_property
    @_ordinary
    def value_of_column(self) -> Tensor:
        """Value row that each column of the output map reads, through its head."""
        starts = _starts(self.values)
        own = [range(start, start + width) for start, width in zip(starts, self.values, strict=True)]
        return _rows(own, self.kv_of_head)

    @cached_property
    @_ordinary
    def kv_index(self) -> Tensor | None:
        """Key/value head of each query head, `[H]`; None where each has its own."""
        own = self.kv_of_head == tuple(range(self.kv_heads))
        return None if own else torch.tensor(self.kv_of_head, dtype=torch.long, device="cpu")

    @cached_property
    def pair_width(self) -> int:
        """Entries of the widest query or key head."""
        return max((self._width(g) for g in range(self.kv_heads)), default=0)

    @cached_property
    def value_width(self) -> int:
        """Entries of the widest value head."""
        return max(self.values, default=0)

    @cached_property
    @_ordinary
    def padded_q(self) -> Tensor | None:
        """Where each entry of equally wide query heads comes from, one past the last for padding; None as they are."""
        return self._padded_pairs(self.kv_of_head)

    @cached_property
    @_ordinary
    def padded_k(self) -> Tensor | None:
        """The same for key heads."""
        return self._padded_pairs(range(self.kv_heads))

    @cached_property
    @_ordinary
    def padded_v(self) -> Tensor | None:
        """The same for value heads."""
        return _padded([(width,) for width in self.values], (self.value_width,))

    @cached_property
    @_ordinary
    def joined(self) -> Tensor | None:
        """Entries of equally wide head outputs that exist, in the order of the output map's columns; None for all."""
        wide = self.value_width
        if self.even:
            return None
        return _joined(
            [torch.arange(self.values[g], device="cpu") + head * wide for head, g in enumerate(self.kv_of_head)]
        )

    @cached_property
    @_ordinary
    def kv_of_q(self) -> Tensor:
        """Key/value head of each query row."""
        return torch.tensor(self.kv_of_head, dtype=torch.long, device="cpu")[self.head_of_q]

    @cached_property
    @_ordinary
    def kv_of_column(self) -> Tensor:
        """Key/value head of each column of the output map."""
        return torch.tensor(self.kv_of_head, dtype=torch.long, device="cpu")[self.head_of_column]

    def turned(self, full_pairs: int, heads: Sequence[int]) -> Tensor | None:
        """Columns of a rotary table, or of another row of one value per entry, for padded heads.

        Args:
            full_pairs: pairs of an uncut head.
            heads: the key/value head of each wanted head.

        Returns:
            `[heads, width]`; None where every pair is there.
        """
        if all(pairs == tuple(range(full_pairs)) for pairs in self.pairs):
            return None
        most = self.pair_width // self.members
        rows = []
        for g in heads:
            columns = [*self.pairs[g], *([0] * (most - len(self.pairs[g])))]
            rows.append(self._columns(columns, full_pairs))
        return torch.tensor(rows, dtype=torch.long, device="cpu")

    def kept(self, heads: Tensor, pairs: Tensor, values: Tensor) -> HeadShape:
        """The shape with only the given heads, pairs and value entries (bool masks); empty key/value heads go."""
        left = heads.nonzero().flatten().tolist()
        stay = sorted({self.kv_of_head[h] for h in left})
        place = {g: number for number, g in enumerate(stay)}
        pair_starts, value_starts = _starts([len(p) for p in self.pairs]), _starts(self.values)
        # As lists: asking a tensor entry by entry takes longer than all the rest of a cut.
        on, live = pairs.tolist(), values.tolist()
        return HeadShape(
            tuple(place[self.kv_of_head[h]] for h in left),
            tuple(tuple(itertools.compress(self.pairs[g], on[pair_starts[g] :])) for g in stay),
            tuple(sum(live[value_starts[g] : value_starts[g] + self.values[g]]) for g in stay),
            self.members,
            self.neighbours,
        )

    def _width(self, g: int) -> int:
        return self.members * len(self.pairs[g])

    def _pair_rows(self) -> list[list[int]]:
        """The pair of each row of every key head."""
        counts = [len(pairs) for pairs in self.pairs]
        own = [range(start, start + count) for start, count in zip(_starts(counts), counts, strict=True)]
        if self.neighbours:
            return [[pair for pair in pairs for _ in range(self.members)] for pairs in own]
        return [list(pairs) * self.members for pairs in own]

    def _columns(self, pairs: Sequence[int], full_pairs: int) -> list[int]:
        """Where the members of these pairs stand in a head that has all pairs."""
        members = range(self.members)
        if self.neighbours:
            return [self.members * pair + member for pair in pairs for member in members]
        return [pair + member * full_pairs for member in members for pair in pairs]

    def _padded_pairs(self, heads: Sequence[int]) -> Tensor | None:
        if self.neighbours:
            return _padded([(self._width(g),) for g in heads], (self.pair_width,))
        counts = [(len(self.pairs[g]),) * self.members for g in heads]
        return _padded(counts, (self.pair_width // self.members,) * self.members)


def _padded(parts: Sequence[tuple[int, ...]], wanted: tuple[int, ...]) -> Tensor | None:
    """Source of each entry when every run of a head is padded to the wanted length; None where nothing is padded."""
    if all(part == wanted for part in parts):
        return None
    total, start, found = sum(map(sum, parts)), 0, []
    for part in parts:
        for length, full in zip(part, wanted, strict=True):
            found += [*range(start, start + length), *([total] * (full - length))]
            start += length
    return torch.tensor(found, dtype=torch.long, device="cpu")


def _starts(lengths: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(lengths, initial=0))[:-1]


def _repeat(labels: Sequence[int], times: Sequence[int]) -> Tensor:
    return torch.tensor(list(labels), dtype=torch.long, device="cpu").repeat_interleave(
        torch.tensor(list(times), dtype=torch.long, device="cpu")
    )  # fmt: skip


def _rows(of_head: Sequence[Sequence[int]], heads: Sequence[int]) -> Tensor:
    """The rows of several heads behind each other; lists first, since a tensor for each head takes long."""
    return as_index([row for head in heads for row in of_head[head]])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.long, device="cpu"), *parts])
