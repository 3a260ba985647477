"""Where what the commands make goes, and what it may start from."""

from __future__ import annotations

from dataclasses import dataclass

from tsprune.settings import option


@dataclass(frozen=True)
class RunOutput:
    """Where a run goes."""

    out: str = option("tsprune-run", "Run directory. An unfinished run there is continued, finished stages are kept.")
    minutes: float = option(0.0, "Rough time budget; fewer or more tuning steps are taken accordingly.")


@dataclass(frozen=True)
class ScoreOutput:
    """Where scores go."""

    out: str = option("scores.json", "File for the scores.")


@dataclass(frozen=True)
class PruneOutput:
    """Where a pruned model goes, and what it may start from."""

    out: str = option("pruned", "Directory for plan.json, rounds.json and model/.")
    scores: str = option(
        "", "Scores written by 'tsprune score'; prunes in one shot by them, to --keep or --speedup, not round by round."
    )
    plan: str = option(
        "", "A plan.json found elsewhere, or a directory that has one; cuts as it says instead of choosing units."
    )


@dataclass(frozen=True)
class FinetuneOutput:
    """Where a tuned model goes."""

    out: str = option("tuned", "Directory for model/ and trials.json.")
    teacher: str = option(
        "", "With --distill: the dense model to follow, named as in --model. Default: the model itself, if it is dense."
    )


@dataclass(frozen=True)
class EvaluateOutput:
    """What is scored, and where metrics go."""

    bits: int = option(0, "Width at which a quantised model is read, such as 4. Default: the widest that it has.")

    part: str = option("test", "Part of the data to score: test or validation.")
    out: str = option("", "JSON file for the metrics; without it they are only printed.")


@dataclass(frozen=True)
class PretrainOutput:
    """What to pretrain on what, and where it goes."""

    family: str = option("chronos2", "Family of the new model.")
    size: str = option("mini", "Preset of the family, or a config.json in the family's public layout.")
    corpus: str = option(
        "", "Folder of CSV files with real series, mixed with the simulated ones. Default: simulated only."
    )
    out: str = option("tsprune-pretrain", "Directory for the checkpoint, the log and model/. Continued if unfinished.")
    threads: int = option(0, "CPU threads. Default: all cores.")
