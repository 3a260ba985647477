"""What is trained and compared. The folder is the registry: one file per candidate, with `CANDIDATE`, under its name.

A candidate says where it starts (`_starts.py`) and how it is trained from there (`_trainings.py`). Names of those that
are trained from scratch end in `_scratch`: they owe nothing to the pretrained model, and the report treats them as
rivals. Nothing here imports anything heavy, so that options can list the names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tsprune import registry
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.candidates._candidate import Candidate
    from tsprune.preparing import Prepared
    from tsprune.settings import FinetuneSettings, PruneSettings

DENSE, PRUNED = "full_finetuning", "prune_then_finetune"
DEFAULT = (DENSE, "random_prune_finetune", PRUNED)
"""What is trained unless others are named."""
SCRATCH = "_scratch"
"""Ending of the names of candidates that start from fresh weights."""
FLAG = "--candidates"
_PLACES = {DENSE: 0, "random_prune_finetune": 2, PRUNED: 3}


def names() -> list[str]:
    """Names of all candidates, sorted."""
    return registry.names(__name__)


def ordered(chosen: Iterable[str]) -> tuple[str, ...]:
    """The chosen names as their files have them, each once, in the order of the table, whatever order they came in.

    Raises:
        TspruneError: an unknown name (the known are listed), or the pruned candidate is missing: plan, rounds and
            sizes of the others come from it.
    """
    found = {registry.known(__name__, name, FLAG) for name in chosen}
    if PRUNED not in found:
        raise TspruneError(
            f"{FLAG} {','.join(sorted(found)) or 'is empty'}: {PRUNED} is missing, and the plan and the sizes of the "
            f"others come from it; add {PRUNED}"
        )
    return tuple(sorted(found, key=lambda name: (_PLACES.get(name, 1), name)))


def find(name: str) -> Candidate:
    """The candidate of that name.

    Raises:
        TspruneError: no such file; the message lists the known names.
    """
    made: Candidate = registry.find(__name__, name).CANDIDATE
    return made


def tuned(chosen: Iterable[str]) -> list[str]:
    """Those of the names that share the budget of the tuning: all but the ones trained from scratch."""
    return [name for name in chosen if not name.endswith(SCRATCH)]


def check(
    chosen: Iterable[str], pruning: PruneSettings, tuning: FinetuneSettings, ready: Prepared | None = None
) -> None:
    """Refuse, before any work, what cannot be trained.

    Args:
        chosen: names of candidates.
        pruning: how the run prunes.
        tuning: how the run tunes.
        ready: data and model; None checks only what needs neither.

    Raises:
        TspruneError: an unknown name, a missing package, or a candidate that these data or this model do not allow.
    """
    for name in chosen:
        find(name).check(pruning, tuning, ready)
