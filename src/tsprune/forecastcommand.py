"""The command that forecasts what follows the end of your series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tsprune.data.reading import ReadOptions
from tsprune.flags import Chosen
from tsprune.progress import Progress
from tsprune.settings import option


@dataclass(frozen=True)
class PredictSettings:
    """What to forecast, where from and where to."""

    model: str = option("", "Model: RUN/model of a finished run, any model directory, mini, or a hub id.")
    bits: int = option(0, "Width at which a quantised model is read, such as 4. Default: the widest that it has.")
    data: str = option("", "CSV, CSV.gz or Parquet file with your series. Default: the sample inside the package.")
    horizon: int = option(
        0, "Steps to forecast. Default: what the model was tuned for, else one season of 8 to 96 steps."
    )
    context: int = option(
        0, "Steps of history to use. Default: what the model was tuned for, else all that it can use."
    )
    levels: tuple[float, ...] = option(
        (), "Quantile levels, such as 0.1,0.5,0.9. Default: the deciles; for a model of single values that value."
    )
    together: bool = option(False, "Forecast all series of the file jointly, as one group (families that can).")
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    threads: int = option(0, "CPU threads. Default: all cores.")
    out: str = option("forecast.csv", "CSV file for the forecast, or - for standard output.")


def run_predict(chosen: Chosen, quiet: bool) -> None:
    """Forecast the steps after the end of your series."""
    from tsprune.data.reading import read
    from tsprune.models import load
    from tsprune.predicting import predict, usual_context, usual_levels
    from tsprune.preparing import default_horizon, other_task, sample_panel, set_threads
    from tsprune.stages import writable_file, write_text

    progress = Progress(quiet)
    settings = chosen.make(PredictSettings)
    piped, out = settings.out == "-", Path(settings.out)
    if not piped:
        writable_file(out)
    set_threads(settings.threads)
    options = chosen.make(ReadOptions)
    panel = read(Path(settings.data), options) if settings.data else sample_panel(options)
    for line in panel.describe():
        progress.say(line)
    model = load(settings.model or "mini", device=settings.device, bits=settings.bits or None)
    horizon = settings.horizon or model.task.get("horizon") or default_horizon(panel)
    context = settings.context or usual_context(model, panel)
    notes = [*model.notes, *other_task(model.task, panel, settings.together)]
    if model.task and not (settings.horizon and settings.context):
        notes.append(f"horizon {horizon}, context {context}: what the model was tuned for, where not given by flags")
    elif not settings.horizon:
        notes.append(f"horizon {horizon}: one season, as --horizon is not given")
    if horizon > model.native_horizon:
        notes.append(f"horizon {horizon} is longer than the {model.native_horizon} steps the model gives: rolled out")
    for note in notes:
        progress.say(f"note: {note}")
    table = predict(
        model, panel, horizon, context=context, levels=settings.levels or None, together=settings.together
    )  # fmt: skip
    levels = len(settings.levels or usual_levels(model))
    said = f"{len(panel.series)} series, {horizon} steps each, " + (
        f"{levels} quantiles" if levels > 1 else "one value"
    )
    if piped:
        print(table.to_csv(index=False), end="")
        progress.say(said)
    else:
        write_text(out, table.to_csv(index=False))
        print(f"{said}, written to {out}")
