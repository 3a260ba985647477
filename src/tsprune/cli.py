"""The command line. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from tsprune import __version__, commands, plancommands
from tsprune.errors import TspruneError
from tsprune.flags import command
from tsprune.stages import release

STOPPED = 130
# Faults of a disk, which no check can foresee and which may come without the name of a file.
DISK = {errno.ENOSPC, errno.EFBIG, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}
# How numpy, torch on a CPU and torch on a GPU begin to say that memory is short; only the first has a class for it.
SHORT = ("unable to allocate", "can't allocate memory", "not enough memory", "out of memory")

app = typer.Typer(
    name="tsprune",
    help="Turn a pretrained time-series foundation model into a smaller, faster specialist for your series, "
    "and prove it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tsprune {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    _group(context)


def _group(context: typer.Context) -> None:
    """A group of commands without a command explains itself."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _add(group: typer.Typer, entries: Sequence[commands.Command]) -> None:
    for entry in entries:
        body = command(entry.run, entry.sections, entry.positional)
        group.command(entry.name, cls=_with_others(entry.beside) if entry.beside else TyperCommand)(body)


def _with_others(entries: Sequence[commands.Command]) -> type[TyperCommand]:
    """A command whose first word may be the name of another one, which takes over with options of its own."""

    class Parting(TyperCommand):
        def make_context(self, info_name: str | None, args: list[str], *more: Any, **named: Any) -> Any:
            for entry in entries:
                if args and args[0] == entry.name:
                    other = typer.Typer(add_completion=False, rich_markup_mode="rich")
                    other.command(entry.name)(command(entry.run, entry.sections, entry.positional))
                    taking = typer.main.get_command(other)
                    return taking.make_context(f"{info_name} {entry.name}", args[1:], *more, **named)
            return super().make_context(info_name, args, *more, **named)

    return Parting


_add(app, commands.COMMANDS)
_plans = typer.Typer(help=plancommands.HELP, callback=_group, invoke_without_command=True)
_add(_plans, plancommands.COMMANDS)
app.add_typer(_plans, name="plan")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; a user's mistake is one line on the error stream and exit code 2."""
    try:
        code: Any = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
    except TspruneError as error:
        fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        _stopped()
    except BrokenPipeError:
        # The reader of a pipe has gone; without this, the interpreter complains again when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        said = _unforeseen(error)
        if not said:
            raise
        fail(said)
    finally:
        # An error that someone still looks at would keep the run directory closed.
        release()
    if code == STOPPED:
        _stopped()
    sys.exit(code if isinstance(code, int) else 0)


def _unforeseen(error: Exception) -> str:
    """What to say of an error that no check foresaw and that still is no defect of ours, or nothing."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in DISK):
        return f"{error.filename or 'output'}: {error.strerror}"
    first = str(error).strip().split("\n")[0]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in SHORT)):
        return (
            f"out of memory ({first or type(error).__name__}); use fewer or shorter series, a shorter --horizon or "
            "--context, or a smaller --batch-size"
        )
    # The CLI library's usage errors carry their own exit code and text.
    said = getattr(error, "format_message", None)
    return f"{said().rstrip('.')} (see tsprune --help)" if callable(said) else ""


def _stopped() -> NoReturn:
    typer.echo("stopped; the same command continues where it was", err=True)
    sys.exit(STOPPED)


def fail(message: str) -> NoReturn:
    """One line, exit code 2."""
    typer.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
