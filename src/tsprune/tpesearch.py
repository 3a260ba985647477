"""Learning rate, weight decay and dropout by optuna: a seeded TPE sampler, and a pruner of hopeless trials."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from tsprune.dropouts import dropout_rates
from tsprune.models._forecaster import Forecaster
from tsprune.searching import Choice, Search
from tsprune.settings import RATES, FinetuneSettings

BESIDE = 10.0
"""Learning rates are searched from this factor below the lowest of the mode's usual rates to as far above the highest.

The usual rates bracket what was measured to be best (see `settings.RATES`), but on one model and one series. A decade
below, a short trial hardly moves; a decade above is beyond where trainings were seen to diverge.
"""
DECAYS = (0.0, 0.01, 0.1)
"""Weight decays tried: none, AdamW's usual one, and the one that transformers are often pretrained with."""
DROPOUTS = (0.0, 0.1, 0.2)
"""Dropout rates tried beside the model's own: none, and the usual small ones; the public checkpoints have 0 to 0.2."""
JUDGED_FROM = 2
"""The validation of a trial, counted from 1, from which on it may be pruned: half-way. The first comes too early, as
the rate is warmed up over a tenth of a trial and the running mean of the weights has hardly left the start."""
FAR = 1e300
"""Stands for a loss that is no finite number: medians stay numbers, and optuna only compares."""


@dataclass(frozen=True)
class Space:
    """What is searched.

    Args:
        learning_rate: lowest and highest, drawn evenly on a logarithmic scale.
        weight_decay: to choose from.
        dropout: to choose from, None for the model's own rates; empty where it is not searched.
    """

    learning_rate: tuple[float, float]
    weight_decay: tuple[float, ...]
    dropout: tuple[float | None, ...]

    def facts(self) -> dict[str, Any]:
        """For the results."""
        found = {"sampler": f"TPE of optuna {version('optuna')}", "pruner": "median"}
        return {**found, **{name: list(value) for name, value in asdict(self).items()}}


def space_of(settings: FinetuneSettings, model: Forecaster) -> Space:
    """What is searched in the mode of the settings; the same for every candidate of a mode that drops alike.

    Args:
        settings: the weight decay that is set is among those tried; a dropout that is set is not searched.
        model: whose dropout is searched, if it has any place for it; not changed.
    """
    usual, own = RATES[settings.tuning], set(dropout_rates(model).values())
    dropout: tuple[float | None, ...] = ()
    if own and settings.dropout is None:
        dropout = (None, *(rate for rate in DROPOUTS if own != {rate}))
    return Space(
        (float(f"{min(usual) / BESIDE:.6g}"), float(f"{max(usual) * BESIDE:.6g}")),
        tuple(sorted({*DECAYS, settings.weight_decay})),
        dropout,
    )


class TpeSearch(Search):
    """A tree-structured Parzen estimator (Bergstra et al., 2011) after the usual rates of the mode, which come first.

    From as many trials on as there are usual rates, all that the grid of learning rates tries is tried here, too, and
    never pruned. After that a trial ends early once the lowest of its losses is above the median of those that the
    whole trials had at the same step (optuna's `MedianPruner`); it counts as a trial all the same. A trial is judged by
    its losses after a step, so that among those that never got below the start the sampler still sees which was worse.

    Args:
        settings: `trials`, the mode, weight decay and dropout are read.
        model: see `space_of`.
        seed: of the sampler; the pruner draws nothing.
    """

    evaluations = 4
    judges = True

    def __init__(self, settings: FinetuneSettings, model: Forecaster, seed: int) -> None:
        self.settings, self.trials = settings, settings.trials
        self.space = space_of(settings, model)
        self.searched = ("weight_decay", *(("dropout",) if self.space.dropout else ()))
        self._trial: Any = None
        self._reported = 0
        usual = RATES[settings.tuning]
        with _quiet() as optuna:
            drawn = int(np.random.SeedSequence([seed, 13]).generate_state(1)[0])
            # Said in full, since the defaults have changed between versions.
            sampler = optuna.samplers.TPESampler(
                seed=drawn, n_startup_trials=len(usual), multivariate=True, constant_liar=False
            )
            pruner = optuna.pruners.MedianPruner(n_startup_trials=len(usual), n_warmup_steps=JUDGED_FROM)
            self._study = optuna.create_study(sampler=sampler, pruner=pruner, direction="minimize")
            self._drawn_from = self._distributions(optuna)
            for rate in usual:
                first = {"learning_rate": rate, "weight_decay": settings.weight_decay, "dropout": None}
                self._study.enqueue_trial({name: first[name] for name in self._drawn_from})

    def _distributions(self, optuna: Any) -> dict[str, Any]:
        kinds = optuna.distributions
        found = {
            "learning_rate": kinds.FloatDistribution(*self.space.learning_rate, log=True),
            "weight_decay": kinds.CategoricalDistribution(self.space.weight_decay),
        }
        if self.space.dropout:
            found["dropout"] = kinds.CategoricalDistribution(self.space.dropout)
        return found

    def ask(self) -> Choice:
        """One of the usual rates at first, with all else as set; then what the sampler draws."""
        with _quiet():
            self._trial = self._study.ask(self._drawn_from)
        self._reported = 0
        found = self._trial.params
        dropout = found["dropout"] if self.space.dropout else self.settings.dropout
        return Choice(found["learning_rate"], found["weight_decay"], dropout, self.searched)

    def hopeless(self, losses: Sequence[float]) -> bool:
        """Whether the trial lies behind the median of the others; depends on nothing but what was told before."""
        self._report(losses)
        with _quiet():
            return bool(self._trial.should_prune())

    def tell(self, losses: Sequence[float], pruned: bool) -> None:
        """The lowest loss is what the trial is worth."""
        self._report(losses)
        with _quiet() as optuna:
            if pruned:
                self._study.tell(self._trial, state=optuna.trial.TrialState.PRUNED)
            else:
                self._study.tell(self._trial, min(map(_finite, losses)))

    def _report(self, losses: Sequence[float]) -> None:
        with _quiet():
            for number, loss in enumerate(losses[self._reported :], start=self._reported + 1):
                self._trial.report(_finite(loss), number)
        self._reported = len(losses)

    def label(self, number: int) -> str:
        """With the number, since two trials may have rates that are written alike."""
        return f"search {number}"


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else FAR


@contextmanager
def _quiet() -> Iterator[Any]:
    """The module optuna, with its log and the warnings about features on trial kept back for the while."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)
