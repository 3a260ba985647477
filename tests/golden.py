"""Compare our families with reference cases made with the original implementations.

    python -m tests.golden CASE_DIR...

Each case is a folder with config.json, model.safetensors, {inputs,outputs}.safetensors and case.json.
Exit code 0: everything within tolerance; 1: something is not; 2: a case cannot be run at all.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if importlib.util.find_spec("tsprune") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from torch import Tensor

from tsprune.blocks.units import Block
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models import load
from tsprune.models._forecaster import Forecaster
from tsprune.training_state import read_tensors

Tensors = dict[str, Tensor]


class Adapter:
    """How one family's cases are run; the base serves tensors that carry their public names."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        """The outputs of the call; `loss` is a scalar with its graph."""
        raise NotImplementedError

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        """Outputs of the long forecast, if the case has one."""
        return {}

    def gradient(self, model: Forecaster, name: str) -> Tensor | None:
        """Gradient of the parameter of that public name; None when there is no such parameter."""
        found = dict(model.named_parameters()).get(name)
        if found is None:
            return None
        return torch.zeros_like(found) if found.grad is None else found.grad

    @contextmanager
    def masked(self, model: Forecaster, mask: Mapping[str, Any]) -> Iterator[None]:
        """Zero the listed entries of what enters the named module: by our gates where they are units."""
        name = mask["module"]
        module = dict(model.named_modules())[name]
        path, _, leaf = name.rpartition(".")
        block = model.get_submodule(path)
        groups = model.unit_groups()
        kind = "head" if mask["kind"] == "head" else "ffn_channel"
        group = groups.get(f"{path}/{kind}")
        gone = [int(mask["head"])] if kind == "head" else [int(channel) for channel in mask["channels"]]
        fits = kind != "head" or getattr(block, "head_width", None) == mask["head_dim"]
        if isinstance(block, Block) and group is not None and leaf in ("o", "wo") and fits:
            with model.masked({group.name: [unit for unit in range(group.units) if unit not in gone]}):
                yield
            return
        width = int(mask.get("head_dim", 1))
        entries = [unit * width + step for unit in gone for step in range(width)]

        def clear(_: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            keep = torch.ones(given[0].shape[-1], dtype=given[0].dtype)
            keep[entries] = 0
            return (given[0] * keep, *given[1:])

        handle = module.register_forward_pre_hook(clear)
        try:
            yield
        finally:
            handle.remove()


def first_of(tensors: Tensors, *names: str) -> Tensor | None:
    """The first tensor that is there under one of the names."""
    return next((tensors[name] for name in names if name in tensors), None)


def hidden_where(values: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """NaN where a mask is 0."""
    return values if values is None or mask is None else values.masked_fill(mask == 0, torch.nan)


class Bolt(Adapter):
    """Chronos-Bolt: the native horizon in one block; one public table of relative biases per stack."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        mask = first_of(inputs, "mask", "context_mask")
        with torch.no_grad():
            prediction, scale = model(inputs["context"], mask=mask)
        outputs = {"quantile_preds": scale.invert(prediction)}
        target = hidden_where(inputs.get("target"), inputs.get("target_mask"))
        if target is not None:
            outputs["loss"] = model.row_losses(Batch(inputs["context"], target), mask=mask).mean()  # type: ignore[call-arg]
        return outputs

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        if "rollout_length" not in call:
            return {}
        return {"rollout_quantiles": model.forecast(Batch(inputs["context"]), int(call["rollout_length"]))}

    def gradient(self, model: Forecaster, name: str) -> Tensor | None:
        if not name.endswith("relative_attention_bias.weight"):
            return super().gradient(model, name)
        # The public table serves every block of its stack, so its gradient is the sum over our tables.
        pattern = re.escape(name).replace("block\\.0", "block\\.\\d+")
        tables = [own for own, _ in model.named_parameters() if re.fullmatch(pattern, own)]
        parts = [part for own in tables if (part := super(Bolt, self).gradient(model, own)) is not None]
        return torch.stack(parts).sum(0) if parts else None


class ChronosTwo(Adapter):
    """Chronos-2: whole output patches, groups, known futures."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        mask = first_of(inputs, "mask", "context_mask")
        steps = int(call.get("num_output_patches", 1)) * int(model.config["chronos_config"]["input_patch_size"])
        batch = self._batch(inputs)
        with torch.no_grad():
            prediction, scale = model(
                batch.context, steps=steps, mask=mask, group_ids=batch.group_ids, future=batch.future
            )
        outputs = {"quantile_preds": scale.invert(prediction)}
        if batch.target is not None:
            outputs["loss"] = model.row_losses(batch, mask=mask, steps=steps).mean()  # type: ignore[call-arg]
        return outputs

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        if "rollout_length" not in call:
            return {}
        return {"rollout_quantiles": model.forecast(self._batch(inputs), int(call["rollout_length"]))}

    def _batch(self, inputs: Tensors) -> Batch:
        future = hidden_where(inputs.get("future_covariates"), inputs.get("future_covariates_mask"))
        target = first_of(inputs, "target", "future_target")
        target = hidden_where(target, first_of(inputs, "target_mask", "future_target_mask"))
        return Batch(inputs["context"], target, inputs.get("group_ids"), future)


ADAPTERS: dict[str, Adapter] = {"chronos_bolt": Bolt(), "chronos2": ChronosTwo()}


@dataclass(frozen=True)
class Line:
    """One compared tensor; `ours` is None when it could not be computed."""

    name: str
    difference: float
    tolerance: float
    remark: str = ""

    @property
    def ok(self) -> bool:
        """Whether the difference is within tolerance (NaN is not)."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAIL"
        return f"  {self.name:<72} {self.difference:10.3e} {self.tolerance:10.3e}  {verdict}{self.remark}"


def compare(case_dir: Path) -> list[Line]:
    """Every reference tensor of a case against ours.

    Raises:
        TspruneError: the case cannot be run: no such family, no such file.
    """
    if not (case_dir / "case.json").is_file():
        raise TspruneError(f"{case_dir} has no case.json; give folders of reference cases")
    case = json.loads((case_dir / "case.json").read_text(encoding="utf-8"))
    adapter = ADAPTERS.get(case["family"])
    if adapter is None:
        raise TspruneError(f"{case_dir}: family {case['family']!r} has no adapter here; known: {', '.join(ADAPTERS)}")
    inputs, _ = read_tensors(case_dir / "inputs.safetensors")
    wanted, _ = read_tensors(case_dir / "outputs.safetensors")
    model = load(case_dir, family=case["family"])
    ours = compute(model, adapter, case, inputs, [name[5:] for name in wanted if name.startswith("grad.")])
    limits = case.get("tolerances", {}).get("per_output", {})
    return [_line(name, reference, ours.get(name), limits.get(name, {})) for name, reference in wanted.items()]


def compute(
    model: Forecaster, adapter: Adapter, case: Mapping[str, Any], inputs: Tensors, gradients: list[str]
) -> Tensors:
    """Our version of everything a case may hold."""
    call = case.get("call") or {}
    ours = adapter.forward(model, inputs, call)
    if "loss" in ours:
        ours["loss"].backward()  # type: ignore[no-untyped-call]
        found = {f"grad.{name}": adapter.gradient(model, name) for name in gradients}
        ours |= {name: gradient.clone() for name, gradient in found.items() if gradient is not None}
    ours |= adapter.rollout(model, inputs, call)
    for mask in case.get("masks", []):
        with adapter.masked(model, mask), torch.no_grad():
            hidden = adapter.forward(model, inputs, call) | adapter.rollout(model, inputs, call)
        ours |= {f"{mask['key']}.{name}": value for name, value in hidden.items()}
    return {name: value.detach() for name, value in ours.items()}


def _line(name: str, reference: Tensor, ours: Tensor | None, limit: Mapping[str, float]) -> Line:
    size = float(reference.double().abs().nan_to_num().max()) if reference.numel() else 0.0
    tolerance = float(limit.get("suggested_atol", 1e-5 * size + 1e-6))
    if ours is None:
        return Line(name, float("nan"), tolerance, " (not computed)")
    if ours.shape != reference.shape:
        return Line(name, float("nan"), tolerance, f" (shape {list(ours.shape)}, expected {list(reference.shape)})")
    if not torch.equal(torch.isnan(ours), torch.isnan(reference)):
        return Line(name, float("nan"), tolerance, " (NaN in different places)")
    difference = (ours.double() - reference.double()).abs().nan_to_num()
    return Line(name, float(difference.max()) if difference.numel() else 0.0, tolerance)


def main(arguments: list[str]) -> int:
    """Print one line per tensor; see the module's text for the exit code."""
    if not arguments:
        print("usage: python -m tests.golden CASE_DIR...", file=sys.stderr)
        return 2
    code = 0
    for argument in arguments:
        try:
            lines = compare(Path(argument))
        except TspruneError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        print(f"{argument}   (name, max abs difference, tolerance)")
        for line in lines:
            print(line)
        failed = sum(not line.ok for line in lines)
        print(
            f"  {len(lines)} tensors, {failed} beyond tolerance"
            if failed
            else f"  {len(lines)} tensors, all within tolerance"
        )
        code = max(code, 1 if failed else 0)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
