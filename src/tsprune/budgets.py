"""What a budget is measured in: parameters, operations of one forecast, or predicted latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tsprune.blocks.attention import Attention
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.onequery import alone, fits
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import flops
from tsprune.evaluation.costtable import CostTable
from tsprune.models._forecaster import Forecaster
from tsprune.slimming import meta_twin, slim

Measure = Callable[[Forecaster], float]
"""The size of a model, also of one on the meta device."""

MEASURES = ("parameters", "flops")


def parameters(model: Forecaster) -> float:
    """Number of parameters."""
    return float(model.parameter_count())


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model cut in any way, from its twin on the meta device.

    Args:
        twin: see `tsprune.slimming.meta_twin`.
        measure: of what.
    """

    twin: Forecaster
    measure: Measure
    _known: dict[Any, float] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: Forecaster, measure: Measure = parameters) -> Sizes:
        """For cuts of this model."""
        return cls(meta_twin(model), measure)

    def __call__(self, kept: Mapping[str, Sequence[int]]) -> float:
        """Size of the model in which only the kept units are left."""
        key = tuple((name, tuple(units)) for name, units in kept.items())
        if key not in self._known:
            self._known[key] = self.measure(slim(self.twin, kept))
        return self._known[key]


@dataclass(frozen=True)
class Budget:
    """How small the model has to become.

    Args:
        measure: of what.
        goal: the size that is reached, or missed by less than one unit downwards.
        words: the budget as the user gave it, such as `--keep 0.6`.
        identity: everything that decides how sizes are measured, JSON-able; for the checkpoint.
    """

    measure: Measure
    goal: float
    words: str
    identity: Any = None


def keep_budget(model: Forecaster, keep: float, measure: Measure = parameters, of: str = "parameters") -> Budget:
    """A share of the model that stays.

    Args:
        model: the uncut model.
        keep: between 0 and 1.
        measure: of what; `of` is its name.
        of: `parameters` or `flops`.

    Raises:
        TspruneError: an impossible share.
    """
    if not 0 < keep < 1:
        raise TspruneError(f"--keep {keep} must lie between 0 and 1")
    words = f"--keep {keep:g}" + (f" of {of}" if of != "parameters" else "")
    whole = measure(meta_twin(model))
    return Budget(measure, float(int(keep * whole)), words, [of, keep, whole])


class Flops:
    """Floating point operations of one forecast of a cut model, without running it.

    The uncut model is run once and its operations are counted, map by map. Those of a linear map go with its
    inputs and outputs, those of an attention's two products with heads times widths; all others do not change. How many
    tokens pass is taken from that run; those of a mixture of experts are shared out evenly among the experts
    that are left.

    Args:
        model: the uncut model, not on the meta device.
        context: steps of context L.
        horizon: steps of forecast H.
        batch: rows B.
    """

    def __init__(self, model: Forecaster, context: int, horizon: int, batch: int = 1) -> None:
        self.tokens, self.single, counted, total = _run(model, context, horizon, batch)
        self.pairs: dict[str, float] = {}
        for path, block in model.named_modules():
            if isinstance(block, Attention) and (width := _product_width(block)):
                inside = sum(
                    2 * self.tokens.get(f"{path}.{name}", 0) * layer.weight.numel() for name, layer in _maps(block)
                )
                # What an attention does beyond its maps: two products, over all pairs of query and key.
                self.pairs[path] = (counted.get(path, 0) - inside) / (2 * width)
        self.experts = _experts(model)
        # That run is watched, so that every token has its key and its value.
        self.rest = total - sum(self._of_modules(model, single=False).values())

    def __call__(self, model: Forecaster) -> float:
        """Operations of the forecast; the model may be on the meta device."""
        return self.rest + sum(self.of_modules(model).values())

    def of_modules(self, model: Forecaster) -> dict[str, float]:
        """Operations of every linear map and of every attention's products, by path."""
        return self._of_modules(model, single=True)

    def _of_modules(self, model: Forecaster, single: bool) -> dict[str, float]:
        """The same, with or without single queries that go through the maps in place of what they ask."""
        found = {}
        shares = _experts(model)
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                tokens = float(self.tokens.get(path, 0))
                if (home := self._home(path)) is not None and shares.get(home):
                    # Every token still goes to as many experts as before.
                    tokens = self._expert_tokens(home, path) / shares[home]
                found[path] = 2.0 * tokens * module.weight.numel()
            elif isinstance(module, Attention):
                found[path] = 2.0 * self.pairs.get(path, 0.0) * _product_width(module)
        for path in self.single if single else ():
            block = model.get_submodule(path) if f"{path}.k" in found else None
            if isinstance(block, Attention) and fits(block):
                asked = float(self.tokens[f"{path}.q"])
                found |= {f"{path}.{name}": 2.0 * asked * getattr(block, name).weight.numel() for name in "kv"}
                found[path] = 4.0 * self.pairs[path] * block.heads * block.k.in_features
        return found

    def _home(self, path: str) -> str | None:
        """The mixture of experts that a map's expert belongs to."""
        return next((home for home in self.experts if path.startswith(f"{home}.experts.")), None)

    def _expert_tokens(self, home: str, path: str) -> float:
        """Tokens that all experts of a mixture see together at one of their maps."""
        leaf = path.removeprefix(f"{home}.experts.").partition(".")[2]
        return sum(
            count
            for name, count in self.tokens.items()
            if name.startswith(f"{home}.experts.") and name.endswith(f".{leaf}")
        )


def _maps(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, m) for name, m in block.named_modules() if isinstance(m, nn.Linear)]


def _product_width(block: Attention) -> int:
    """Entries that the two products of an attention sum or give over all heads, padding included."""
    return block.shape.heads * (block.shape.pair_width + block.shape.value_width)


def _experts(model: nn.Module) -> dict[str, int]:
    return {path: len(m.experts) for path, m in model.named_modules() if isinstance(m, MixtureOfExperts)}


def _run(
    model: Forecaster, context: int, horizon: int, batch: int
) -> tuple[dict[str, int], set[str], dict[str, int], int]:
    """One forecast: tokens through every linear map, attentions with single queries only, their operations, all."""
    tokens: dict[str, int] = {}
    counted: dict[str, int] = {}
    several: set[str] = set()
    counter = FlopCounterMode(display=False)

    def count(path: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        tokens[path] = tokens.get(path, 0) + prod(given[0].shape[:-1])

    # The counter has names of its own for modules, which depend on how the model calls them.
    def begin(path: str, block: Attention, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        counted[path] = counted.get(path, 0) - counter.get_total_flops()
        turned = named.get("rotary") is not None or named.get("key_rotary") is not None
        if not alone(given[0], named.get("memory"), cached=named.get("cache") is not None, turned=turned):
            several.add(path)

    def end(path: str, *_: Any) -> None:
        counted[path] += counter.get_total_flops()

    handles = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(partial(count, path)))
        elif isinstance(module, Attention):
            handles.append(module.register_forward_pre_hook(partial(begin, path), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(end, path)))
    try:
        with counter:
            total = flops(model, context, horizon, batch)
    finally:
        for handle in handles:
            handle.remove()
    return tokens, counted.keys() - several, counted, total


class PredictedLatency:
    """Time of one forecast of a cut model on one thread of this machine, milliseconds, from a table of costs.

    Args:
        table: see `tsprune.evaluation.costtable`.
        flops: counts the operations by which the table is read.
    """

    def __init__(self, table: CostTable, flops: Flops) -> None:
        self.table, self.flops = table, flops

    def __call__(self, model: Forecaster) -> float:
        """Predicted milliseconds; the model may be on the meta device."""
        return self.table.predict(model, self.flops.of_modules(model))


def speed_budget(speedup: float, latency: PredictedLatency) -> Budget:
    """So many times as fast as the uncut model, by prediction.

    Args:
        speedup: above 1.
        latency: the prediction.

    Raises:
        TspruneError: an impossible factor.
    """
    if not speedup > 1:
        raise TspruneError(f"--speedup {speedup} must be above 1")
    words = f"--speedup {speedup:g} of predicted latency"
    return Budget(latency, latency.table.dense_ms / speedup, words, ["latency", speedup, latency.table.to_json()])
