"""Tiny models with random weights and small batches, one of each family."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tsprune import registry
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster

FAMILIES = ("chronos2", "chronos_bolt")
LEVELS = [0.1, 0.25, 0.5, 0.75, 0.9]


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    """A small public config; entries of `chronos_config` are changed by their own name."""
    config: dict[str, Any] = {
        "d_model": 24,
        "d_kv": 6,
        "d_ff": 20,
        "num_layers": 2,
        "num_heads": 3,
        "feed_forward_proj": "relu",
        "dropout_rate": 0.0,
    }
    section: dict[str, Any] = {
        "context_length": 64,
        "input_patch_size": 8,
        "input_patch_stride": 8,
        "quantiles": LEVELS,
        "use_reg_token": True,
    }
    if family == "chronos_bolt":
        config |= {"architectures": ["ChronosBoltModelForForecasting"], "num_decoder_layers": 2}
        config |= {"chronos_pipeline_class": "ChronosBoltPipeline", "decoder_start_token_id": 0}
        section["prediction_length"] = 16
    else:
        config |= {"architectures": ["Chronos2Model"], "chronos_pipeline_class": "Chronos2Pipeline"}
        section |= {"output_patch_size": 8, "max_output_patches": 2, "use_arcsinh": True}
    for name, value in changes.items():
        (section if name in section else config)[name] = value
    return {**config, "chronos_config": section}


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


def shared_folder() -> Path:
    """The folder with reference data, or a skip that says why."""
    named = os.environ.get("TSPRUNE_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"no reference cases: {folder}/golden is missing; set TSPRUNE_SHARED to the folder that has it")
    return folder
