"""The card of a pretrained model: what it is, what it has seen, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsprune.evaluation.machine import machine_line

SIMULATED = "tsprune simulated series"


def corpora(description: Mapping[str, Any] | None) -> list[str]:
    """Names of everything the model was trained on, for the leakage line of reports."""
    return [SIMULATED, *(description["files"] if description else ())]


def model_card(
    family: str,
    parameters: int,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    description: Mapping[str, Any] | None,
    seconds: float,
    threads: int,
) -> str:
    """The card as Markdown.

    Args:
        family: the family's name.
        parameters: number of parameters.
        config: the model's public config.
        settings: of the pretraining, by option name.
        description: of the real series (`Corpus.describe`), or None for simulated ones alone.
        seconds: training time.
        threads: CPU threads that torch used.
    """
    section = config.get("chronos_config", {})
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    real = "none: simulated series alone"
    if description:
        real = (
            f"{description['series']:,} real series with {description['points']:,} points from "
            f"{len(description['files'])} files ({', '.join(description['files'])})"
        )
    folder = " --corpus FOLDER" if description else ""
    lines = [
        f"# A {family} model of {parameters / 1e6:.2f} M parameters, pretrained from scratch by tsprune",
        "",
        f"- architecture: family `{family}`, context {section.get('context_length')}, patches of "
        f"{section.get('input_patch_size')}, {len(section.get('quantiles', ()))} quantile levels, float16 on disk",
        f"- corpus: simulated series of `tsprune.data.simulated`, and {real}",
        f"- made by: `tsprune pretrain --family {family}{folder} {flags}`",
        f"- steps {settings['steps']}, seed {settings['seed']}, {seconds / 60:.0f} minutes on {threads} thread(s)",
        f"- machine: {machine_line()}",
        "",
    ]
    return "\n".join(lines)
