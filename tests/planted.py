"""Models to score, explicit gates as a slow reference, and units that are dead because the test killed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from tests.tiny import grouped_batch, tiny_batch, tiny_model
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.positions import rotary_table
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster

WIDTH, PATCH, HORIZON = 16, 8, 16
WHOLE = ("attention", "ffn", "layer")


class Mixed(Forecaster):
    """What the families lack: shared key/value heads, biases everywhere, a mixture of experts, gated channels."""

    family = "mixed"

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"model_type": "mixed"}
        self.levels, self.native_horizon, self.context_length = (0.5,), HORIZON, 64
        experts = [FeedForward(WIDTH, 6, act="silu", gated=True, bias=True) for _ in range(4)]
        shared = FeedForward(WIDTH, 5, act="gelu", bias=True)
        inner: list[tuple[str, Any]] = [
            ("attention", Attention(WIDTH, 4, 6, kv_heads=2, rotary=True, bias=True)),
            ("mixture", MixtureOfExperts(WIDTH, experts, 2, shared=shared, shared_gate=True)),
            ("attention", Attention(WIDTH, 3, 4, rotary=True)),
            ("mlp", FeedForward(WIDTH, 7, act="gelu", gated=True, bias=True)),
        ]
        branches = [Branch(name, block, RMSNorm(WIDTH), WIDTH) for name, block in inner]
        self.embed = nn.Linear(PATCH, WIDTH)
        self.block = nn.ModuleList([Layer(branches[:2]), Layer(branches[2:])])
        self.head = nn.Linear(WIDTH, HORIZON)

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        return bool(config.get("model_type") == "mixed")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls()

    def row_losses(self, batch: Batch) -> Tensor:
        assert batch.target is not None
        error = torch.nan_to_num(self._ahead(batch.context) - self._scaled(batch.target.to(self.dtype)))
        return error.square().mean(1)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        return self._ahead(batch.context)[:, None, :steps]

    @staticmethod
    def _scaled(values: Tensor) -> Tensor:
        return (values - 5) / 10

    def _ahead(self, context: Tensor) -> Tensor:
        values = torch.nan_to_num(self._scaled(context.to(self.dtype)))
        count = values.shape[1] // PATCH
        x = self.embed(values[:, -count * PATCH :].view(-1, count, PATCH))
        for layer in self.block:
            for branch in layer.branches:
                attends = branch.kind == "attention" and branch.inner is not None
                rotary = rotary_table(torch.arange(count), branch.inner.head_width) if attends else None
                x = branch(x, rotary=rotary) if attends else branch(x)
        found: Tensor = self.head(x.mean(1))
        return found


def mixed() -> tuple[Forecaster, Batch]:
    torch.manual_seed(8)
    model = Mixed()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.4 if parameter.ndim > 1 else 0.3) + (parameter.ndim < 2))
    return model.eval(), tiny_batch(4, seed=3)


def family(name: str, batch: Batch) -> Callable[[], tuple[Forecaster, Batch]]:
    def build() -> tuple[Forecaster, Batch]:
        model = tiny_model(name, seed=5)
        # Larger output maps: gradients differ between windows, and their squares weigh as much as they do.
        with torch.no_grad():
            for path, weight in model.named_parameters():
                if path.endswith((".o.weight", ".wo.weight")):
                    weight.mul_(2)
        return model, batch

    return build


BUILDERS: dict[str, Callable[[], tuple[Forecaster, Batch]]] = {
    "chronos2": family("chronos2", tiny_batch(4)),
    "chronos2 groups": family("chronos2", grouped_batch()),
    "chronos_bolt": family("chronos_bolt", tiny_batch(4)),
    "mixed": mixed,
}


def built(case: str, dtype: torch.dtype = torch.float64) -> tuple[Forecaster, Batch]:
    """Model and windows of a case, both in one precision."""
    model, batch = BUILDERS[case]()
    return model.to(dtype), cast(batch, dtype if dtype != torch.bfloat16 else torch.float32)


def kinds_of(model: Forecaster) -> tuple[str, ...]:
    """Every kind of unit that a model has."""
    return tuple(sorted({group.kind for group in model.unit_groups().values()}))


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return Batch(**{n: v.to(dtype) if v is not None and v.is_floating_point() else v for n, v in values.items()})


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    pick = torch.tensor(rows)
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return Batch(**{name: None if value is None else value[pick] for name, value in values.items()})


def window_rows(batch: Batch) -> list[list[int]]:
    """Rows of each window, windows in order of first appearance."""
    ids = list(range(batch.rows)) if batch.group_ids is None else batch.group_ids.tolist()
    return [[row for row, i in enumerate(ids) if i == one] for one in dict.fromkeys(ids)]


def windows_of(batch: Batch) -> list[Batch]:
    """One batch per window, in order of first appearance."""
    return [rows_of(batch, rows) for rows in window_rows(batch)]


def agree(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Equal up to the tolerance relative to the entry, or to the largest where terms cancelled."""
    return bool(((a - b).abs() <= tolerance * (b.abs() + b.abs().max())).all())


# ---- the reference: gates are real factors in the forward pass, one window at a time


def places(model: Forecaster, name: str, gate: Tensor) -> list[tuple[nn.Module, bool, Tensor]]:
    """Where the units of a group leave the network: a module, whether its input or output is multiplied, the factors.

    Written from what a unit is, not from the blocks' own gates.
    """
    path, kind = name.rsplit("/", 1)
    block = model.get_submodule(path)
    if kind == "head":
        return [(block.o, True, gate.repeat_interleave(block.o.in_features // len(gate)))]
    if kind == "kv_group":
        return [(block.o, True, gate.repeat_interleave(block.o.in_features // len(gate)))]
    if kind == "value_dim":
        return [(block.v, False, gate)]
    if kind == "qk_pair":
        heads = block.k.out_features // block.head_width
        members = block.k.out_features // len(gate)
        # Inside a head: the first members of all pairs, then the second ones.
        return [(block.k, False, gate.view(heads, -1).repeat(1, members).reshape(-1))]
    if kind == "ffn_channel":
        return [(block.wo, True, gate)]
    if kind == "expert":
        return [(expert, False, gate[number]) for number, expert in enumerate(block.experts.values())]
    if kind == "layer":
        return [(getattr(branch, branch.inner_name), False, gate) for branch in block.layer]
    if kind in ("attention", "ffn"):
        return [(getattr(block, block.inner_name), False, gate)]
    return [(block, kind == "in_channel", gate)]


@contextmanager
def multiplied(model: Forecaster, name: str, gate: Tensor) -> Iterator[None]:
    """Multiply `gate` into the places where the units of a group leave the network."""

    def hook(module: nn.Module, on_input: bool, factors: Tensor) -> Any:
        def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (inputs[0] * factors, *inputs[1:])

        def after(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return output * factors

        return module.register_forward_pre_hook(before) if on_input else module.register_forward_hook(after)

    handles = [hook(*place) for place in places(model, name, gate)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def window_loss(model: Forecaster, window: Batch) -> Tensor:
    """Mean over the target rows of one window."""
    losses = model.row_losses(window)
    return losses.mean() if window.is_target is None else losses[window.is_target].mean()


def slow_gradients(model: Forecaster, batch: Batch, name: str, units: int) -> Tensor:
    """Derivative of every window's loss with respect to gates of 1: `[N, U]`."""
    rows = []
    for window in windows_of(batch):
        gate = torch.ones(units, dtype=model.dtype, requires_grad=True)
        with multiplied(model, name, gate):
            loss = window_loss(model, window)
        found = torch.autograd.grad(loss, gate, allow_unused=True)[0]
        rows.append(torch.zeros(units) if found is None else found)
    return torch.stack([row.double() for row in rows])


# ---- dead units


def planted(model: Forecaster) -> dict[str, int]:
    """Kills one unit of each kind that the model has, in place; returns group name and number of each.

    Output weights become zero, or what makes the unit fire. Whole branches and layers die at the end of the network,
    other units at its start, so that they do not lie inside.
    """
    found: dict[str, int] = {}
    groups = model.unit_groups()
    for kind in kinds_of(model):
        name = [name for name, group in groups.items() if group.kind == kind][-1 if kind in WHOLE else 0]
        found[name] = groups[name].units - 1
    with torch.no_grad():
        for name, unit in found.items():
            _kill(model, name, unit)
    return found


def _kill(model: Forecaster, name: str, unit: int) -> None:
    path, kind = name.rsplit("/", 1)
    block: Any = model.get_submodule(path)
    units = model.unit_groups()[name].units
    if kind in ("head", "kv_group"):
        width = block.o.in_features // units
        block.o.weight[:, unit * width : (unit + 1) * width] = 0
    elif kind == "value_dim":
        block.v.weight[unit] = 0
        if block.v.bias is not None:
            block.v.bias[unit] = 0
    elif kind == "qk_pair":
        off = torch.ones(units)
        off[unit] = 0
        rows = places(model, name, off)[0][2] == 0
        block.k.weight[rows] = 0
        if block.k.bias is not None:
            block.k.bias[rows] = 0
    elif kind == "ffn_channel":
        block.wo.weight[:, unit] = 0
    elif kind == "expert":
        expert = list(block.experts.values())[unit]
        expert.wo.weight.zero_()
        if expert.wo.bias is not None:
            expert.wo.bias.zero_()
    elif kind in ("attention", "ffn", "layer"):
        for module, _, __ in places(model, name, torch.ones(1)):
            last = getattr(module, "o", getattr(module, "wo", None))
            for part in (last,) if last is not None else ():
                part.weight.zero_()
                if part.bias is not None:
                    part.bias.zero_()
    elif kind == "in_channel":
        block.weight[:, unit] = 0
    else:
        block.weight[unit] = 0
        if block.bias is not None:
            block.bias[unit] = 0
