"""The layout of the original package with zeros where units were removed, so that it loads the model unchanged."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsprune.errors import TspruneError
from tsprune.exports._export import Export, Request
from tsprune.exports._files import sizes_of
from tsprune.exports._markdown import loading
from tsprune.exports._uncut import uncut, why_not
from tsprune.models._forecaster import Forecaster
from tsprune.models._loading import load, save
from tsprune.slimming import equivalence

LIMIT = 1e-11
"""Accepted difference of forecasts in float64, in standard deviations of the forecasts."""

BESIDE = ("LICENSE*", "NOTICE*", "generation_config.json", "preprocessor_config.json", "tokenizer*")
"""Files of the unpruned model that some originals read or that must go with it."""


class Masked(Export):
    """`config.json` and `model.safetensors` under the public names, at the sizes before the cut.

    Nothing gets smaller or faster: this is for the tools that know the original alone. Every number comes from the
    model and its config; the unpruned model is not needed. The option `base`, its directory, has only files beside the
    weights copied, such as a licence.
    """

    title = "masked, for the original package"

    def refusal(self, model: Forecaster) -> str:
        """Experts and shared tables may have no place in the original; see `tsprune.exports._uncut`."""
        if model.folded:
            return (
                f"{len(model.folded)} of its attentions were folded into one linear map, for which the original has no "
                "place; export the model from before --fold"
            )
        return why_not(model)

    def usage(self, facts: Mapping[str, Any], name: str) -> str:
        """The original package's own way, or ours."""
        return (
            "It has names, layout and sizes of the base model, with zeros where units were removed, so it is neither "
            "smaller nor faster. The original package of the family loads it like the base model, with this repository "
            f"or its directory in place of that name. tsprune loads it too:\n\n{loading(name, facts['horizon'])}"
        )

    def write(self, request: Request) -> dict[str, Any]:
        """Write the uncut model, load it back and compare its forecasts.

        Args:
            request: with `base` among its options, or not.

        Returns:
            `files` with their bytes; `parameters` of the slim model and of what was written, with the `zeros` in the
            latter; `changed`, entries of the config that had to change; `difference` in float32 and float64, in
            standard deviations of the forecasts, the largest of all batches; `copied`, names of files of the base;
            `notes` for people.
        """
        beside = _beside(request.options.get("base"))
        whole = uncut(request.model)
        changed = {k: v for k, v in whole.config.items() if request.model.config.get(k) != v}
        save(whole, request.out)
        again = load(request.out)
        found = [equivalence(again, request.model, {}, batch, request.horizon) for batch in request.batches]
        difference = {
            "float32": max(one["relative"] for one in found),
            "float64": max(one["relative_float64"] for one in found),
            "windows": sum(one["windows"] for one in found),
        }
        if not difference["float64"] <= LIMIT:
            raise TspruneError(
                f"what was written forecasts something else than the model, by {difference['float64']:.2e} of the "
                f"forecasts' spread in float64, over {LIMIT:g}; this is a defect of tsprune, please report it"
            )
        zeros = sum(int((p == 0).sum()) for p in again.parameters())
        notes = [
            f"{name} is {value} in config.json, it was {request.model.config.get(name)}"
            for name, value in changed.items()
        ]
        for path in beside:
            shutil.copyfile(path, request.out / path.name)
        return {
            "files": sizes_of(request.out),
            "parameters": {"slim": request.model.parameter_count(), "written": again.parameter_count()},
            "zeros": zeros,
            "changed": changed,
            "difference": difference,
            "copied": [path.name for path in beside],
            "notes": notes,
        }


def _beside(base: str | Path | None) -> list[Path]:
    """What is copied from the directory of the unpruned model."""
    if not base:
        return []
    directory = Path(base)
    if not directory.is_dir():
        raise TspruneError(f"--base {base} is not a directory; give that of the unpruned model, or leave it out")
    return sorted({path for pattern in BESIDE for path in directory.glob(pattern) if path.is_file()})


EXPORT = Masked()
