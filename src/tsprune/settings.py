"""Every option once: the field is the Python argument, the YAML key and the flag. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tsprune.amounts import byte_count
from tsprune.blocks.kinds import KINDS, USUAL
from tsprune.candidates import DEFAULT as TRAINED
from tsprune.candidates import ordered
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines import DEFAULT
from tsprune.registry import known, names


def option(default: Any, text: str) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TaskSettings:
    """What to forecast, with which model, and how it is judged."""

    data: str = option("", "CSV, CSV.gz or Parquet file with your series. Default: the sample inside the package.")
    model: str = option(
        "mini", "Bundled model (mini or mini-moe), a local directory, or a hub id such as amazon/chronos-2."
    )
    horizon: int = option(0, "Steps to forecast. Default: one season, at least 8 and at most 96 steps.")
    context: int = option(0, "Steps of history the model sees. Default: what the model can use and the data allows.")
    split: str = option("auto", "auto, 'ratio 70/10/20', holdout, etth, ettm, or 'date TRAIN_END VALIDATION_END'.")
    train_share: float = option(
        1.0,
        "Share of the training windows that is used, the latest of each series: what a short history would give.",
    )
    together: bool = option(False, "Forecast all series of the file jointly, as one group (families that can).")
    loss: str = option(
        "",
        "Loss of scoring, steering and tuning: own (of the family's pretraining) or mse (squared error of the point "
        "forecast; families that have it). Default: the model's own.",
    )
    batch_size: int = option(256, "Windows per batch when evaluating. Does not change any result.")
    allow_leakage: bool = option(
        False, "Go on although a covariate holds the target of the steps to forecast; the results say so."
    )
    validation_windows: int = option(512, "Validation windows that steer pruning and stopping, evenly spread.")
    test_windows: int = option(20000, "Test windows at most, evenly spread; 0 takes every one. The stride is reported.")
    latency_batch: int = option(1, "Windows per forecast when latency is measured.")
    threads: int = option(0, "CPU threads. Default: all cores. Latency is always measured on one.")
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    seed: int = option(0, "Seed of everything that draws.")

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name in ("horizon", "context", "test_windows", "threads", "seed"):
            if getattr(self, name) < 0:
                raise TspruneError(f"--{name.replace('_', '-')} {getattr(self, name)} must not be negative")
        for name in ("batch_size", "validation_windows", "latency_batch"):
            if getattr(self, name) < 1:
                raise TspruneError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if not 0 < self.train_share <= 1:
            raise TspruneError(f"--train-share {self.train_share:g} must be above 0 and at most 1")


@dataclass(frozen=True)
class BaselineSettings:
    """What the model is measured against."""

    baselines: tuple[str, ...] = option(
        DEFAULT,
        "Baselines on the same windows, each series from its own past: "
        f"{', '.join(names('tsprune.evaluation.baselines'))}. "
        "auto_ets and auto_theta need the extra tsprune[baselines] and fit a model to every window.",
    )

    def __post_init__(self) -> None:
        """Refuse unknown names; the others become those of their files, each once."""
        found = (known("tsprune.evaluation.baselines", name, "--baselines") for name in self.baselines)
        object.__setattr__(self, "baselines", tuple(dict.fromkeys(found)))


@dataclass(frozen=True)
class CandidateSettings:
    """What is trained and compared."""

    candidates: tuple[str, ...] = option(
        TRAINED,
        f"Models to train and compare: {', '.join(names('tsprune.candidates'))}; prune_then_finetune must be among "
        "them. All that are tuned get as many trials and steps; those from scratch get their published budget. "
        "lora needs the extra tsprune[lora], itransformer_scratch needs --together.",
    )
    scratch_steps: int = option(
        0,
        "Steps at most of candidates from scratch. Default: as many as their authors published, which may take hours.",
    )
    scratch_small: bool = option(
        False, "Train the smallest size that their authors published, whatever the data; for when there is little time."
    )

    def __post_init__(self) -> None:
        """Refuse unknown names; the others become those of their files, each once, in the order of the table."""
        object.__setattr__(self, "candidates", ordered(self.candidates))
        if self.scratch_steps < 0:
            raise TspruneError(f"--scratch-steps {self.scratch_steps} must not be negative")


@dataclass(frozen=True)
class PruneSettings:
    """How to prune."""

    score: str = option("fisher", f"Importance score: {', '.join(names('tsprune.scores'))}.")
    schedule: str = option(
        "progressive",
        "How much goes when: progressive, one_shot, cubic, ema_online (units go after every macro-batch, an epoch is a "
        "round) or layer_drop.",
    )
    keep: float = option(
        0.0, "Share that stays, such as 0.6; the last round ends on it. Default: validation decides, see --tolerance."
    )
    keep_of: str = option("parameters", "What --keep is a share of: parameters, or flops of one forecast.")
    speedup: float = option(
        0.0,
        "So many times as fast, such as 3: prunes to that predicted latency on one thread of this machine, which is "
        "measured first. Excludes --keep.",
    )
    uniform: bool = option(False, "Take the same share of every group, so that equal layers stay equal.")
    regrow: bool = option(
        False, "Score the uncut model in every round; units whose score has recovered come back, others go instead."
    )
    units: tuple[str, ...] = option(
        (),
        f"Kinds of units that may go: {', '.join(KINDS)}. Default: those of {', '.join(USUAL)} that the model has and "
        "the score can judge.",
    )
    rank: str = option(
        "magnitude", "magnitude ranks by absolute score; signed removes first what is predicted to lower the loss."
    )
    ratio: float = option(
        0.06,
        "Share of the prunable parameters still alive (ema_online: of the units) that one round removes. With --keep "
        "or --speedup it follows from the rounds, except for ema_online.",
    )
    rounds: int = option(12, "Pruning rounds at most; 12 of 6 % leave about half of the prunable parameters.")
    epoch_batches: int = option(4, "Macro-batches in a round of ema_online; units go after each of them.")
    ema: float = option(0.5, "Weight of the newest macro-batch in the smoothed scores.")
    prune_patience: int = option(4, "Rounds in a row outside the tolerance after which pruning stops.")
    adapt_steps: int = option(
        60,
        "Steps of tuning before units are scored; every tuned candidate goes on from there. 0 starts from the model "
        "as it comes.",
    )
    adapt_rate: float = option(3e-4, "Learning rate of those steps.")
    adapt_tuning: Literal["full", "head"] = option(
        "full",
        "What those steps train: full (everything), or head, for a checkpoint whose forecast head is new or was made "
        "for other data; what comes out is the dense model that all candidates start from.",
    )
    prune_windows: int = option(512, "Training windows scored in each round.")
    max_memory: str = option(
        "",
        "Memory that scoring may take beside the weights, such as 500MB or 2GB: windows are scored in portions that "
        "fit. Default: as much as there is; portions that do not fit are halved.",
    )
    repair: bool = option(
        True,
        "Refit what is left of each block to the outputs of the uncut block, by least squares on training windows.",
    )
    rewind: bool = option(
        False,
        "Score the units of the fully fine-tuned model, then go back to the weights before that tuning, cut them and "
        "tune again.",
    )
    tolerance: float = option(
        0.03, "The smallest model is kept whose validation loss is within this share of the best round's."
    )

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.max_memory:
            byte_count(self.max_memory, "--max-memory")
        if self.keep and not 0 < self.keep < 1:
            raise TspruneError(f"--keep {self.keep} must lie between 0 and 1")
        if self.speedup and not self.speedup > 1:
            raise TspruneError(f"--speedup {self.speedup} must be above 1")
        if self.keep and self.speedup:
            raise TspruneError(f"--keep {self.keep} and --speedup {self.speedup} are two budgets; give one of them")
        if self.keep_of not in ("parameters", "flops"):
            raise TspruneError(f"--keep-of {self.keep_of!r} is unknown; use parameters or flops")
        if self.keep_of != "parameters" and not self.keep:
            raise TspruneError(f"--keep-of {self.keep_of} says what --keep is a share of; give --keep as well")
        if self.rank not in ("signed", "magnitude"):
            raise TspruneError(f"--rank {self.rank!r} is unknown; use signed or magnitude")
        if self.adapt_steps < 0 or not self.adapt_rate > 0:
            raise TspruneError(
                f"--adapt-steps {self.adapt_steps} must not be negative and --adapt-rate {self.adapt_rate} be positive"
            )
        if self.tolerance < 0 or self.prune_windows < 1:
            raise TspruneError(
                f"--tolerance {self.tolerance} must not be negative and --prune-windows {self.prune_windows} at least 1"
            )


@dataclass(frozen=True)
class FoldSettings:
    """What becomes of a model at the very end."""

    fold: bool = option(
        False,
        "Turn every attention in which a query has but one key into the one linear map that it is: exact, smaller and "
        "faster. Attention across series counts where series are forecast alone; the model then refuses groups.",
    )


# On the bundled model and sample, 60 steps: everything wants 3e-4 to 1e-3, the head and adapters about ten times as
# much (best of five rates from 3e-4 to 3e-2: 1e-2 for both; at 3e-2 adapters never got below where they began).
RATES: dict[str, tuple[float, ...]] = {
    "full": (1e-4, 3e-4, 1e-3),
    "head": (1e-3, 3e-3, 1e-2),
    "lora": (1e-3, 3e-3, 1e-2),
}
"""Learning rates tried where none is given."""


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune. The same settings serve the dense and the pruned model."""

    tuning: Literal["full", "head", "lora"] = option(
        "full", "What trains: full (everything), head (the forecast head alone) or lora (low-rank adapters, merged)."
    )
    steps: int = option(200, "Optimiser steps of a full run at the chosen learning rate.")
    search_steps: int = option(
        40, "Steps of each trial in the learning-rate search or of --trials; 0 skips it and takes the first rate."
    )
    learning_rates: tuple[float, ...] = option(
        (),
        "Learning rates to try; validation decides. Default: three, by --tuning: "
        + "; ".join(f"{tuning} {','.join(f'{rate:g}' for rate in rates)}" for tuning, rates in RATES.items())
        + ".",
    )
    trials: int = option(
        0,
        "Trials of a search by optuna over learning rate and weight decay (and dropout where the model has some and "
        "--dropout does not fix it); 0 tries the --learning-rates. Needs the extra tsprune[tune].",
    )
    batch: int = option(64, "Windows per step.")
    evaluations: int = option(10, "How often a full run is validated.")
    patience: int = option(4, "Validations without improvement after which a run stops.")
    weight_decay: float = option(0.01, "Decoupled weight decay.")
    clip: float = option(1.0, "Largest norm of the gradient.")
    averaging: float = option(
        0.95, "Decay of the running mean of the weights, which is what is validated and kept; 0 keeps the weights."
    )
    dropout: float | None = option(
        None,
        "Rate of every dropout while a candidate is tuned; those from scratch keep the published one. Default: the "
        "model's own rate.",
    )
    distill: float = option(
        0.0, "Weight of following the dense model's forecasts beside the task's loss, below 1; 0 is off."
    )
    lora_rank: int = option(8, "Rank of the adapters of --tuning lora.")
    lora_alpha: float = option(16.0, "Scale of the adapters of --tuning lora; divided by their rank.")

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to try: the given ones, or those of the mode. As many in every mode: equal budgets."""
        return self.learning_rates or RATES[self.tuning]

    @property
    def searched_rates(self) -> int:
        """How many trials the search makes, each at a learning rate of its own."""
        if self.trials:
            return self.trials
        return len(self.rates) if self.search_steps and len(self.rates) > 1 else 0

    def inputs(self) -> dict[str, Any]:
        """Every field, JSON-able, for hashes and for results.

        Fields that came later are left out at their default, so that what was made before keeps its hash.
        """
        return {name: value for name, value in asdict(self).items() if name != "trials" or value}

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.tuning not in RATES:
            raise TspruneError(f"--tuning {self.tuning!r} is unknown; use full, head or lora")
        for name in ("steps", "batch", "evaluations", "patience"):
            if getattr(self, name) < 1:
                raise TspruneError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.search_steps < 0 or self.weight_decay < 0:
            raise TspruneError(
                f"--search-steps {self.search_steps} and --weight-decay {self.weight_decay} must not be negative"
            )
        if self.clip <= 0:
            raise TspruneError(f"--clip {self.clip} must be above 0")
        if not 0 <= self.averaging < 1:
            raise TspruneError(f"--averaging {self.averaging} must be 0 or more and below 1")
        if self.learning_rates and min(self.learning_rates) <= 0:
            raise TspruneError(f"--learning-rates {self.learning_rates} must be positive numbers")
        self._check_trials()
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise TspruneError(f"--dropout {self.dropout:g} must be 0 or more and below 1")
        if not 0 <= self.distill < 1:
            raise TspruneError(f"--distill {self.distill:g} must be 0 or more and below 1; 0 is off")
        if self.lora_rank < 1 or not self.lora_alpha > 0:
            raise TspruneError(f"--lora-rank {self.lora_rank} and --lora-alpha {self.lora_alpha:g} must be above 0")

    def _check_trials(self) -> None:
        if self.trials < 0:
            raise TspruneError(f"--trials {self.trials} must not be negative; 0 tries the --learning-rates")
        if self.trials and self.learning_rates:
            raise TspruneError(
                f"--trials {self.trials} searches the learning rate, which --learning-rates "
                f"{','.join(f'{rate:g}' for rate in self.learning_rates)} lists; give one of them"
            )
        if self.trials and not self.search_steps:
            raise TspruneError(
                f"--trials {self.trials} with --search-steps 0 leaves the trials without a step; give them some, such "
                "as --search-steps 40, or leave --trials out"
            )


@dataclass(frozen=True)
class PretrainSettings:
    """How to pretrain; seed, settings, machine and precision fix the weights."""

    steps: int = option(16000, "Optimiser steps in all.")
    decay_steps: int = option(3500, "The last so many steps lower the learning rate to 0.")
    warmup_steps: int = option(400, "The first so many steps raise the learning rate.")
    batch: int = option(64, "Windows per step.")
    learning_rate: float = option(2e-3, "Highest learning rate.")
    weight_decay: float = option(0.05, "Decoupled weight decay of the matrices.")
    optimizer: str = option("muon", "muon (matrices inside layers; AdamW for the rest) or adamw.")
    precision: str = option("bfloat16", "bfloat16 (autocast over float32 weights) or float32.")
    averaging: float = option(0.998, "Decay of the averaged weights, which are the ones kept.")
    groups: float = option(0.08, "Share of steps on groups of related series, where the family mixes them.")
    farthest: float = option(15.0, "Targets further than so many deviations from the context are ignored.")
    checkpoint_every: int = option(250, "Steps between checkpoints.")
    seed: int = option(0, "Seed of weights and windows.")
    device: str = option("cpu", "cpu, cuda or cuda:N.")

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.precision not in ("float32", "bfloat16"):
            raise TspruneError(f"--precision {self.precision!r} is unknown; use float32 or bfloat16")
        if self.optimizer not in ("muon", "adamw"):
            raise TspruneError(f"--optimizer {self.optimizer!r} is unknown; use muon or adamw")
        if self.steps < 1 or self.batch < 1 or self.checkpoint_every < 1:
            raise TspruneError(f"--steps {self.steps} and --batch {self.batch} must be at least 1")
        if self.learning_rate <= 0 or self.farthest <= 0:
            raise TspruneError(f"--learning-rate {self.learning_rate} and --farthest {self.farthest} must be above 0")
        for name, most in (("averaging", 1), ("groups", 1), ("weight_decay", math.inf)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise TspruneError(f"--{name.replace('_', '-')} {value} must be 0 or more{', at most 1' * (most == 1)}")
        for name in ("decay_steps", "warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise TspruneError(f"--{name.replace('_', '-')} {getattr(self, name)} must not be negative")
        if self.decay_steps + self.warmup_steps > self.steps:
            raise TspruneError(
                f"--warmup-steps {self.warmup_steps} and --decay-steps {self.decay_steps} exceed --steps {self.steps}"
            )
