"""Compare our families with reference cases made with the original implementations.

    python -m tests.golden CASE_DIR...

Each case is a folder with config.json, model.safetensors, {inputs,outputs}.safetensors and case.json.
Exit code 0: everything within tolerance; 1: something is not; 2: a case cannot be run at all.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if importlib.util.find_spec("tsprune") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from torch import Tensor

from tests import families
from tests.families._kit import Adapter, Tensors, masks_of
from tsprune.errors import TspruneError
from tsprune.models import load
from tsprune.models._forecaster import Forecaster
from tsprune.training_state import read_tensors


def adapters() -> dict[str, Adapter]:
    """Adapters of all families, by the family's name in the cases."""
    found: dict[str, Adapter] = {}
    for module in pkgutil.iter_modules(families.__path__):
        if not module.name.startswith("_"):
            found |= importlib.import_module(f"tests.families.{module.name}").ADAPTERS
    return dict(sorted(found.items()))


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
    known = adapters()
    adapter = known.get(case["family"])
    if adapter is None:
        raise TspruneError(f"{case_dir}: family {case['family']!r} has no adapter here; known: {', '.join(known)}")
    inputs, _ = read_tensors(case_dir / "inputs.safetensors")
    wanted, _ = read_tensors(case_dir / "outputs.safetensors")
    model = load(case_dir, family=adapter.family or case["family"])
    ours = compute(model, adapter, case, inputs, [name[5:] for name in wanted if name.startswith("grad.")])
    limits = case.get("tolerances", {}).get("per_output", {})
    return [_line(name, reference, ours.get(name), limits.get(name, {})) for name, reference in wanted.items()]


def compute(
    model: Forecaster, adapter: Adapter, case: Mapping[str, Any], inputs: Tensors, gradients: list[str]
) -> Tensors:
    """Our version of everything a case may hold."""
    call = {**(case.get("call_parameters") or {}), **(case.get("call") or {})}
    ours = adapter.forward(model, inputs, call)
    if "loss" in ours:
        ours["loss"].backward()  # type: ignore[no-untyped-call]
        found = {f"grad.{name}": adapter.gradient(model, name) for name in gradients}
        ours |= {name: gradient.clone() for name, gradient in found.items() if gradient is not None}
    ours |= adapter.rollout(model, inputs, call)
    for mask in masks_of(case):
        with adapter.masked(model, mask), torch.no_grad():
            hidden = adapter.forward(model, inputs, call) | adapter.rollout(model, inputs, call)
        ours |= {f"{mask['key']}.{name}": value for name, value in hidden.items()}
    return {name: value.detach() for name, value in ours.items()}


def _line(name: str, reference: Tensor, ours: Tensor | None, limit: Mapping[str, float] | str) -> Line:
    size = float(reference.double().abs().nan_to_num().max()) if reference.numel() else 0.0
    tolerance = 0.0
    if reference.is_floating_point() and not isinstance(limit, str):
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
