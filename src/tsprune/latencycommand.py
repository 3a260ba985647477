"""The command `bench latency`: models in turn on every runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tsprune.errors import TspruneError
from tsprune.flags import Chosen
from tsprune.progress import Progress
from tsprune.registry import known
from tsprune.settings import option

_RUNTIMES = "tsprune.speed.runtimes"
MOST = 1_000_000


@dataclass(frozen=True)
class LatencySettings:
    """What is timed, and where numbers go."""

    models: tuple[str, ...] = option(
        (),
        "Models, named as in --model of the other commands. The first is the one that the others are compared with, "
        "usually the uncut model.",
    )
    out: str = option("tsprune-latency", "Directory for latency.json and latency.html, which are replaced.")
    batches: tuple[str, ...] = option(
        ("1", "16", "max"),
        "Windows per forecast; max doubles until a quarter of the free memory is reached or windows no longer come "
        "faster.",
    )
    threads: tuple[str, ...] = option(("1", "all"), "Threads, for torch and for the runtimes; all is every core.")
    runtimes: tuple[str, ...] = option(
        (),
        "Runtimes: eager, prepacked, compile, onnx, onnx_int8. Default: those that are installed, but compile, which "
        "takes up to a minute per row. The ONNX ones need the extra tsprune[onnx]; eager is always among them.",
    )
    devices: tuple[str, ...] = field(
        default=("cpu",), metadata={"help": "Devices: cpu, cuda or cuda:N.", "flag": "--device"}
    )
    context: int = option(
        0, "Steps of history. Default: what all models were tuned for, else 512 or what the shortest takes."
    )
    horizon: int = option(
        0, "Steps to forecast. Default: what all models were tuned for, else 64 or what the shortest gives in one pass."
    )
    repeats: int = option(20, "Timed forecasts of each model on each runtime, taken in turn.")
    alone: bool = option(True, "Measure memory and loading in fresh processes, some seconds per row.")

    def __post_init__(self) -> None:
        """Refuse what cannot be measured; names become those of the files."""
        models = tuple(str(Path(name)) if Path(name).is_dir() else name for name in self.models)
        object.__setattr__(self, "models", models)
        if twice := sorted({name for name in self.models if self.models.count(name) > 1}):
            raise TspruneError(f"MODEL {twice[0]!r} is given twice; every model has one row per runtime")
        object.__setattr__(self, "runtimes", tuple(known(_RUNTIMES, name, "--runtimes") for name in self.runtimes))
        for flag, word, values in (("--batches", "max", self.batches), ("--threads", "all", self.threads)):
            for text in values:
                if text != word and not (text.isdecimal() and 0 < int(text) <= MOST):
                    raise TspruneError(f"{flag} {text!r} is neither {word} nor a whole number from 1 to {MOST}")
        if min(self.context, self.horizon) < 0:
            raise TspruneError("--context and --horizon must not be negative")
        if self.repeats < 3:
            raise TspruneError(f"--repeats {self.repeats} must be at least 3: there are no quartiles of fewer")


def run_latency(chosen: Chosen, quiet: bool) -> None:
    """Time models on every runtime: what pruning gives, what the runtime gives, and both together.

    All take turns in one process, so that a neighbour on the machine hits all of them. Forecasts are compared first.
    """
    from tsprune.speed.ladder import climb
    from tsprune.speed.page import write_latency_page
    from tsprune.speed.tables import sentences, short_legend, show
    from tsprune.stages import writable, write_json

    settings, progress = chosen.make(LatencySettings), Progress(quiet)
    if not settings.models:
        raise TspruneError("no model is given; name the uncut one first: tsprune bench latency DENSE SLIM")
    out = writable(Path(settings.out))
    content = climb(settings, progress)
    write_json(out / "latency.json", content)
    write_latency_page(out / "latency.html", content)
    show(content)
    for line in ("", *short_legend(content), "", *sentences(content)):
        print(line)
    print(f"numbers: {out / 'latency.json'}\npage: {out / 'latency.html'}")
