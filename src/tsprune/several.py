"""Several processes at one command, as `torchrun` or `accelerate launch` start them: one of them writes and prints."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tsprune.errors import TspruneError
from tsprune.flags import Chosen
from tsprune.processes import local_rank, rank, started

Run = Callable[[Chosen, bool], None]


def shared(run: Run) -> Run:
    """A command whose processes share the scoring. The first one writes and prints; the others work in silence, and
    write to a place of their own that is removed."""

    @functools.wraps(run)
    def together(chosen: Chosen, quiet: bool) -> None:
        if started() == 1:
            run(chosen, quiet)
            return
        values = dict(chosen.values)
        if values.get("device") == "cuda":
            values["device"] = f"cuda:{local_rank()}"
        with _joined(cpu=not str(values.get("device", "cpu")).startswith("cuda")):
            if rank() == 0:
                run(Chosen(values), quiet)
                return
            with tempfile.TemporaryDirectory() as folder, _silence():
                run(Chosen(values | {"out": str(Path(folder) / "out")}), True)

    return together


def alone(run: Run, name: str) -> Run:
    """A command that several processes would only do several times over; they are refused."""

    @functools.wraps(run)
    def checked(chosen: Chosen, quiet: bool) -> None:
        if (count := started()) > 1:
            raise TspruneError(
                f"{count} processes were started, but 'tsprune {name}' works in one; several can share 'tsprune score' "
                "and 'tsprune prune': start this command without a launcher"
            )
        run(chosen, quiet)

    return checked


@contextmanager
def _joined(cpu: bool) -> Iterator[None]:
    """The processes know each other within."""
    from accelerate.state import PartialState

    state: Any = PartialState(cpu=cpu)
    try:
        yield
        state.wait_for_everyone()
    finally:
        state.destroy_process_group()


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing is printed within, except what goes wrong: that is said afterwards, by whoever catches the error."""
    sys.stdout.flush()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
