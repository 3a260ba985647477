"""How far a pruning has come, on disk after every round: JSON and safetensors only."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.rounds import Round
from tsprune.stages import digest, read_json, write_json
from tsprune.training_state import read_tensors, write_tensors

STATE = "state.json"


@dataclass
class Progressed:
    """What the next round starts from.

    Args:
        rounds: those that are done, the unpruned model first.
        over: whether no unit is left that could go, or the budget is reached.
        smoothed: scores so far, by group; None before the first.
        weights: output projections as they are now, refitted; empty without repair.
        kept_weights: the same of the round that would be kept at present.
    """

    rounds: list[Round] = field(default_factory=list)
    over: bool = False
    smoothed: dict[str, Tensor] | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    kept_weights: dict[str, Tensor] = field(default_factory=dict)


class Checkpoints:
    """The state in a directory, whole after every round, or nothing without a directory.

    Args:
        directory: made when the first round is stored; None stores nothing.
        identity: everything that decides the outcome; a state stored under another one is not continued.
    """

    def __init__(self, directory: Path | None, identity: object) -> None:
        self.directory, self.identity = directory, digest(identity)

    def store(self, state: Progressed) -> None:
        """Store the state; killed in between, the one before is still there."""
        if self.directory is None:
            return
        tensors = {f"weights.{name}": value for name, value in state.weights.items()}
        tensors |= {f"kept.{name}": value for name, value in state.kept_weights.items()}
        tensors |= {f"score.{name}": value for name, value in (state.smoothed or {}).items()}
        file = f"round-{len(state.rounds) - 1}.safetensors"
        if tensors:
            write_tensors(self.directory / file, tensors)
        facts = {
            "identity": self.identity,
            "over": state.over,
            "tensors": file if tensors else "",
            # As text: JSON has no infinity, and every bit counts.
            "rounds": [
                vars(r) | {"removed_share": r.removed_share.hex(), "validation_loss": r.validation_loss.hex()}
                for r in state.rounds
            ],
        }
        write_json(self.directory / STATE, facts)
        for old in self.directory.glob("round-*.safetensors"):
            if old.name != file:
                with contextlib.suppress(OSError):
                    old.unlink()

    def load(self) -> Progressed | None:
        """The stored state, or None where there is none that could be continued."""
        if self.directory is None or not (self.directory / STATE).exists():
            return None
        try:
            facts = read_json(self.directory / STATE)
            if facts["identity"] != self.identity:
                return None
            numbers = ("removed_share", "validation_loss")
            rounds = [Round(**r | {name: float.fromhex(r[name]) for name in numbers}) for r in facts["rounds"]]
            tensors = read_tensors(self.directory / facts["tensors"])[0] if facts["tensors"] else {}
            over = bool(facts["over"])
        except (TspruneError, TypeError, ValueError, KeyError):
            # What a damaged checkpoint held is computed again.
            return None

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        return Progressed(rounds, over, part("score.") or None, part("weights."), part("kept."))


def data_digest(batches: Sequence[Batch]) -> str:
    """Hash of the values of batches."""
    import hashlib

    found = hashlib.sha256()
    for batch in batches:
        for name, value in vars(batch).items():
            if isinstance(value, Tensor):
                found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
                found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
