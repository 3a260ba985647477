"""Around a fine-tuning: what is refused before any work, what is followed, and what the results say of it."""

from __future__ import annotations

from typing import Any

from tsprune.adapters import adapted_paths, check_peft
from tsprune.dropouts import dropout_rates
from tsprune.errors import TspruneError
from tsprune.models import load
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import Prepared
from tsprune.searching import check_optuna
from tsprune.settings import FinetuneSettings, PruneSettings
from tsprune.tpesearch import space_of
from tsprune.tuning_modes import check_head


def check_tuning(settings: FinetuneSettings, model: Forecaster | None = None) -> None:
    """Refuse, before any work, a mode that needs a package that is not there, or that this model does not allow.

    Args:
        settings: how to tune.
        model: the model to be tuned; None checks only what needs no model.
    """
    check_optuna(settings)
    if settings.tuning == "lora":
        check_peft()
        if model is not None:
            adapted_paths(model)
    elif settings.tuning == "head" and model is not None:
        check_head(model)


def refuse_rewind(settings: PruneSettings) -> None:
    """Refuse rewinding where nothing is fully tuned that could be scored."""
    if settings.rewind:
        raise TspruneError(
            "--rewind scores a fully fine-tuned model and tunes again, which only 'tsprune specialize' does; leave it "
            "out here"
        )


def teacher_of(settings: FinetuneSettings, named: str, ready: Prepared) -> Forecaster | None:
    """The dense model whose forecasts are followed, or None without distillation.

    Args:
        settings: how to tune.
        named: the model that `--teacher` names, or empty: then the model that is tuned is its own teacher.
        ready: data and the model that is tuned.

    Raises:
        TspruneError: a teacher without distillation, or a pruned model without a teacher.
    """
    if named and not settings.distill:
        raise TspruneError(f"--teacher {named} has no effect without --distill; give its weight, such as --distill 0.5")
    if named:
        return load(named, device=ready.task.device)
    if settings.distill and ready.model.kept:
        raise TspruneError(
            f"--distill {settings.distill:g}: {ready.task.model} is pruned; name the dense model that it is to follow "
            "with --teacher"
        )
    return ready.model if settings.distill else None


def tuning_facts(settings: FinetuneSettings, model: Forecaster) -> dict[str, Any]:
    """How the candidates were tuned, for the results: the settings, with the rates that were really used.

    Where optuna searched, `search` says between what; the learning rates are those that were tried first.
    """
    own = sorted(set(dropout_rates(model).values()))
    dropout = own if settings.dropout is None else [settings.dropout]
    rates = list(settings.rates[: settings.trials or None])
    return settings.inputs() | {"learning_rates": rates, "dropout_rates": dropout} | search_facts(settings, model)


def search_facts(settings: FinetuneSettings, model: Forecaster) -> dict[str, Any]:
    """Between what optuna searched, as `search`; empty where the learning rates are listed."""
    return {"search": space_of(settings, model).facts()} if settings.trials else {}
