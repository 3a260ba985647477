"""How candidates are tuned: as the run says, or in a mode of their own with the same number of trials and steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tsprune.candidates._candidate import Candidate, Training
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.settings import RATES, FinetuneSettings

if TYPE_CHECKING:
    from tsprune.candidates._workshop import Workshop
    from tsprune.preparing import Prepared

MODES = {"full": "everything trains", "head": "the forecast head trains", "lora": "low-rank adapters train"}


class AsSet(Training):
    """The tuning mode, rates, trials and steps of the run."""

    def settings(self, tuning: FinetuneSettings) -> FinetuneSettings:
        """What this candidate is tuned with."""
        return tuning

    def stage(self, workshop: Workshop, candidate: Candidate, source: Path | None) -> Path:
        """The fine-tuning."""
        return workshop.finetuned(candidate.name, candidate.label, self.settings(workshop.tuning), source)

    def facts(self, workshop: Workshop, folder: Path) -> dict[str, Any]:
        """Mode and budget; the budget is the same for every candidate that is tuned."""
        from tsprune.tuningwork import search_facts

        own = self.settings(workshop.tuning)
        search = f"{own.searched_rates} learning rates of {own.search_steps} steps each, then "
        if own.trials:
            search = f"{many(own.trials, 'trial')} by optuna of at most {many(own.search_steps, 'step')} each, then "
        return {
            "training": MODES[own.tuning],
            "budget": f"{search if own.searched_rates else ''}{own.steps} steps of {own.batch} windows at most",
            "learning_rates": list(own.rates[: own.trials or None]),
            **search_facts(own, workshop.prepared.model),
        }


@dataclass(frozen=True)
class InMode(AsSet):
    """A tuning mode of its own, with as many trials and steps as the run's.

    Rates that were given are meant for the run's mode; here they are multiplied by what lies between the usual rates
    of the two modes, so that equally many are tried.

    Args:
        mode: `head` or `lora`.
    """

    mode: Literal["head", "lora"]

    def settings(self, tuning: FinetuneSettings) -> FinetuneSettings:
        """The run's settings in this mode."""
        factor = RATES[self.mode][0] / RATES[tuning.tuning][0]
        rates = tuple(float(f"{rate * factor:.6g}") for rate in tuning.learning_rates)
        return replace(tuning, tuning=self.mode, learning_rates=rates)

    def check(self, flag: str, tuning: FinetuneSettings, ready: Prepared | None) -> None:
        """Refuse what the full fine-tuning is already, a missing package, and a model that does not allow it."""
        from tsprune.adapters import adapted_paths, check_peft
        from tsprune.tuning_modes import check_head

        cure = "leave the candidate out"
        if tuning.tuning == self.mode:
            raise TspruneError(
                f"{flag}: under --tuning {self.mode} full_finetuning is tuned in that very way; leave the candidate "
                "out, or leave --tuning out"
            )
        if self.mode == "lora":
            check_peft(flag, cure)
        if ready is not None and self.mode == "lora":
            adapted_paths(ready.model, flag, cure)
        elif ready is not None:
            check_head(ready.model, flag, cure)
