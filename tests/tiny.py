"""Tiny models with random weights and small batches, one of each family."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import _chronos
from tests.families._kit import Family
from tsprune import registry
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster

FAMILIES = ("chronos2", "chronos_bolt")
"""Those on which tests beyond the contract run."""
TESTED = sorted(path.stem for path in (Path(__file__).parent / "families").glob("[!_]*.py"))
ALL_FAMILIES = tuple(os.environ.get("TSPRUNE_FAMILIES", ",".join(TESTED)).split(","))
"""Those of the contract tests; TSPRUNE_FAMILIES=one,other restricts them while a family is being written."""
LEVELS = _chronos.LEVELS


def family_facts(family: str) -> Family:
    """What the family's file in `tests/families` says."""
    found: Family = importlib.import_module(f"tests.families.{family}").FAMILY
    return found


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    """A small public config; entries of a section are changed by their own name."""
    config = family_facts(family).config()
    sections = [value for value in config.values() if isinstance(value, dict)]
    for name, value in changes.items():
        next((section for section in sections if name in section and name not in config), config)[name] = value
    return config


def tiny_model(family: str, seed: int = 0, **changes: Any) -> Forecaster:
    """A model in eval mode; norms, biases and tables are random too, so that nothing hides behind a default."""
    torch.manual_seed(seed)
    model: Forecaster = registry.find("tsprune.models", family).FAMILY.from_config(tiny_config(family, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def waves(rows: int, length: int, seed: int = 0) -> Tensor:
    """Noisy sines of different size and level `[rows, length]`."""
    draw = torch.Generator().manual_seed(seed)
    time = torch.arange(length).float()
    scale = torch.arange(1, rows + 1).float()[:, None]
    return 5 * scale + scale * torch.sin(time / (2 + scale)) + 0.3 * torch.randn(rows, length, generator=draw)


def tiny_batch(rows: int = 4, length: int = 44, horizon: int = 16, seed: int = 0) -> Batch:
    """Windows with a gap, left padding and a missing target."""
    values = waves(rows, length + horizon, seed)
    context, target = values[:, :length].clone(), values[:, length:].clone()
    context[0, :11] = torch.nan
    context[-1, 20:24] = torch.nan
    target[0, 2] = torch.nan
    return Batch(context, target)


def grouped_batch(seed: int = 0) -> Batch:
    """Five rows in two windows: a known covariate, a past covariate, three targets."""
    batch = tiny_batch(5, seed=seed)
    assert batch.target is not None
    is_target = torch.tensor([True, False, True, True, False])
    future = torch.full_like(batch.target, torch.nan)
    future[1] = waves(1, 16, seed + 1)[0]
    target = torch.where(is_target[:, None], batch.target, torch.full_like(batch.target, torch.nan))
    return Batch(batch.context, target, torch.tensor([7, 7, 3, 7, 3]), future, is_target)


def shared_path() -> Path:
    """Where the folder with reference data would be."""
    named = os.environ.get("TSPRUNE_SHARED")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared"


def shared_folder() -> Path:
    """The folder with reference data, or a skip that says why."""
    folder = shared_path()
    if not (folder / "golden").is_dir():
        pytest.skip(f"no reference cases: {folder}/golden is missing; set TSPRUNE_SHARED to the folder that has it")
    return folder
