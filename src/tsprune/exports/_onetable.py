"""Tables of relative biases that were tuned apart, in a layout with one table for all layers (T5).

Each of our attentions owns its table, since blocks may lose different heads. The original has one table per stack,
whose columns belong to head 0, 1, ... of every layer. Heads have no order, so a head may stand at any place whose
column is its own: where layers disagree, the table gets a column for every different one, and a layer zeros at the
places that are not its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tsprune.blocks.across import SingleStepAttention
from tsprune.blocks.attention import Attention
from tsprune.models._forecaster import Forecaster
from tsprune.models._fresh import without_memory

Model = TypeVar("Model", bound=Forecaster)
HEADS = "num_heads"
"""Entry of the config of all families whose checkpoints hold such a table."""
TABLE = ".relative_attention_bias.weight"
Heads = Mapping[int, int]
"""Place of each head that is there, by its number."""


def with_one_table(whole: Model, places: Mapping[str, Tensor]) -> Model:
    """The same forecasts with equal tables in all layers of a stack; with more heads than before where needed.

    Args:
        whole: an uncut model, with zeros for removed heads; taken over.
        places: places of the tensors that are there, counted from 1; a table that is not among them is idle, and so
            are columns that no place names.
    """
    placed: dict[str, Heads] = {}
    tables: list[tuple[list[str], Tensor]] = []
    tensors = whole.state_dict()
    for names in whole.stored_once():
        columns, found = _columns([(tensors[name], _there(name, tensors[name], places)) for name in names])
        # A decoder of a single step looks at no other, so its table matters to nothing.
        if _idle(whole, names):
            columns, found = [tensors[names[0]][:, head] for head in range(tensors[names[0]].shape[1])], []
        tables.append((names, torch.stack(columns, 1) if columns else tensors[names[0]][:, :0]))
        placed |= {name.removesuffix(TABLE): heads for name, heads in zip(names, found, strict=False)}
    if not tables:
        return whole
    heads = max(table.shape[1] for _, table in tables)
    moved = any(head != place for found in placed.values() for head, place in found.items())
    wide = _widened(whole, heads, placed) if moved else whole
    state = wide.state_dict()
    for names, table in tables:
        for name in names:
            state[name].zero_()[:, : table.shape[1]] = table
    return wide


def _there(name: str, table: Tensor, places: Mapping[str, Tensor]) -> list[int]:
    """Heads whose column of the table is there."""
    if name not in places or not places[name].numel():
        return []
    return [(int(place) - 1) % table.shape[1] for place in places[name][0]]


def _idle(whole: Forecaster, names: Sequence[str]) -> bool:
    return all(isinstance(whole.get_submodule(name.removesuffix(TABLE)), SingleStepAttention) for name in names)


def _columns(tables: Sequence[tuple[Tensor, list[int]]]) -> tuple[list[Tensor], list[Heads]]:
    """Columns of one table that has those of all, and for each table the places of its heads.

    Heads keep their number where no other layer wants another column there.
    """
    count = tables[0][0].shape[1]
    columns: list[Tensor | None] = [None] * count
    found: list[Heads] = []
    for table, heads in tables:
        own: dict[int, int] = {}
        for head in heads:
            if (taken := columns[head]) is None or torch.equal(taken, table[:, head]):
                columns[head], own[head] = table[:, head], head
        for head in heads:
            if head in own:
                continue
            free = [place for place in range(len(columns)) if place not in own.values()]
            same = [p for p in free if (c := columns[p]) is not None and torch.equal(c, table[:, head])]
            place = same[0] if same else len(columns)
            columns += [table[:, head]] if not same else []
            own[head] = place
        found.append(own)
    nothing = torch.zeros_like(tables[0][0][:, 0])
    return [nothing if column is None else column for column in columns], found


def _widened(whole: Model, heads: int, placed: Mapping[str, Heads]) -> Model:
    """A model with that many heads in every attention; heads of attentions without a table keep their places."""
    with without_memory():
        wide: Model = type(whole).from_config({**whole.config, HEADS: heads})
    narrow = whole.state_dict()
    tensors = {
        name: narrow[name].clone()
        if narrow[name].shape == sized.shape
        else torch.zeros(sized.shape, dtype=narrow[name].dtype)
        for name, sized in wide.state_dict().items()
    }
    for path, attention in whole.named_modules():
        if not isinstance(attention, Attention):
            continue
        own = placed.get(path, {head: head for head in range(attention.heads)})
        sources, targets = (_entries(list(part), attention.head_width) for part in (own.keys(), own.values()))
        for name in ("q", "k", "v", "o"):
            tensor, given = tensors[f"{path}.{name}.weight"].zero_(), narrow[f"{path}.{name}.weight"]
            if name == "o":
                tensor[:, targets] = given[:, sources]
            else:
                tensor[targets] = given[sources]
    wide.load_state_dict(tensors, assign=True)
    wide.objective = whole.objective
    return wide


def _entries(heads: Sequence[int], width: int) -> Tensor:
    return torch.cat([torch.arange(width) + head * width for head in heads] or [torch.zeros(0, dtype=torch.long)])
