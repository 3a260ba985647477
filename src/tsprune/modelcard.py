"""The card of a pretrained model: what it is, what it has seen, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tsprune.evaluation.machine import machine_line

if TYPE_CHECKING:
    from tsprune.models._forecaster import Forecaster

SIMULATED = "tsprune simulated series"


def corpora(description: Mapping[str, Any] | None) -> list[str]:
    """Names of everything the model was trained on, for the leakage line of reports."""
    return [SIMULATED, *(description["files"] if description else ())]


def model_card(
    model: Forecaster,
    settings: Mapping[str, Any],
    description: Mapping[str, Any] | None,
    seconds: float,
    threads: int,
) -> str:
    """The card as Markdown.

    Args:
        model: its sizes are told.
        settings: of the pretraining, by option name.
        description: of the real series (`Corpus.describe`), or None for simulated ones alone.
        seconds: training time.
        threads: CPU threads that torch used.
    """
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    real = "none: simulated series alone"
    if description:
        real = (
            f"{description['series']:,} real series with {description['points']:,} points from "
            f"{len(description['files'])} files ({', '.join(description['files'])})"
        )
    folder = " --corpus FOLDER" if description else ""
    millions = model.parameter_count() / 1e6
    lines = [
        f"# A {model.family} model of {millions:.2f} M parameters, pretrained from scratch by tsprune",
        "",
        f"- architecture: family `{model.family}`, context {model.context_length}, patches of {model.patch}, up to "
        f"{model.native_horizon} steps in one pass, {len(model.levels)} quantile level(s), float16 on disk",
        f"- corpus: simulated series of `tsprune.data.simulated`, and {real}",
        f"- made by: `tsprune pretrain --family {model.family}{folder} {flags}`",
        f"- steps {settings['steps']}, seed {settings['seed']}, {seconds / 60:.0f} minutes on {threads} thread(s)",
        f"- machine: {machine_line()}",
        "",
    ]
    return "\n".join(lines)
