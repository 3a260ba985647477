"""Progress of a stage: a bar with time left on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Progress:
    """Talks to the person in front of it.

    Args:
        quiet: say nothing but what `say(..., always=True)` is given.
        terminal: whether to draw bars; None asks the output.
    """

    def __init__(self, quiet: bool = False, terminal: bool | None = None) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty() if terminal is None else terminal

    def say(self, text: str) -> None:
        """One line, on the error stream so that results can be piped."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Bar]:
        """A stage of `total` steps."""
        bar: Bar = Bar(self, name, total)
        bar.begin()
        try:
            yield bar
        finally:
            bar.end()


class Bar:
    """One stage's progress."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self.progress = progress
        self.name = name
        self.total = max(1, total)
        self.done = 0
        self.note = ""
        self.drawn: Any = None
        self.task: Any = None
        self.started = self.said = time.monotonic()

    def begin(self) -> None:
        """Draw the bar, or say that the stage starts."""
        if self.progress.quiet:
            return
        if not self.progress.terminal:
            self.progress.say(f"{self.name} ...")
            return
        from rich import progress as rich
        from rich.console import Console
        from rich.table import Column

        # Where the line is too narrow, only the note gives way.
        self.drawn = rich.Progress(
            rich.TextColumn("{task.description:<27}", markup=False, table_column=Column(no_wrap=True, min_width=27)),
            rich.BarColumn(bar_width=16, table_column=Column(min_width=16)),
            rich.TaskProgressColumn(table_column=Column(min_width=4)),
            rich.TimeRemainingColumn(table_column=Column(min_width=7)),
            rich.TextColumn(
                "{task.fields[note]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=Console(stderr=True),
            expand=True,
        )
        self.drawn.start()
        self.task = self.drawn.add_task(self.name, total=self.total, note="")

    def update(self, done: int, note: str | None = None) -> None:
        """`done` of the total steps are finished; without a note the last one stays."""
        self.done, self.note = done, self.note if note is None else note
        if self.drawn is not None:
            self.drawn.update(self.task, completed=done, note=self.note)
        elif not self.progress.quiet and time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            left = (self.said - self.started) / max(done, 1) * (self.total - done)
            self.progress.say(f"{self.name}: {done}/{self.total}, about {left:.0f} s left{self._noted()}")

    def advance(self, note: str | None = None) -> None:
        """One more step is finished."""
        self.update(self.done + 1, note)

    def end(self) -> None:
        """Close the bar, or say how long the stage took."""
        if self.drawn is not None:
            self.drawn.stop()
        elif not self.progress.quiet:
            took = time.monotonic() - self.started
            self.progress.say(f"{self.name}: {took:.1f} s{self._noted()}")

    def _noted(self) -> str:
        return f"; {self.note}" if self.note else ""
