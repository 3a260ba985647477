"""ONNX with most of its matrix products in int8, calibrated on a user's windows and held to a bound on its error."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.exports._errors import Forecasts, graph_errors
from tsprune.exports._export import Export, Request
from tsprune.exports._files import sizes_of
from tsprune.exports._integers import in_int8
from tsprune.exports._leaving import Left, excess, left_in_float32
from tsprune.exports._parity import cases
from tsprune.exports._products import Floats, Graph, digest
from tsprune.exports._ranges import FEWEST_TOKENS, Observed, observe
from tsprune.exports.onnx import ABOUT, EMBEDDED, GRAPH, check_packages, outputs, refuse_options
from tsprune.exports.onnx import EXPORT as FLOAT32
from tsprune.models._forecaster import Forecaster, at_levels
from tsprune.stages import read_json, write_json

BOUND = 0.01
"""Share of float32's error that int8 may add unless another one is asked for."""
FEWEST = 8
"""Windows that calibrate, and that judge, at least."""
TRIAL = 32
"""Calibration windows on which products are measured one by one."""
ROWS = 16
"""Rows of a batch, of forecasts that are compared and of the larger of the two that are timed."""
REPEATS = 15
RARE = f"fewer than {FEWEST_TOKENS} tokens came on the calibration windows"
KEPT = "error bound"


@dataclass(frozen=True)
class Judge:
    """Windows on which a graph is compared with the float32 one.

    Args:
        batches: with targets.
        levels: of the quantiles.
        before: forecasts of the float32 graph.
    """

    batches: Sequence[Batch]
    levels: Sequence[float]
    before: Forecasts

    @classmethod
    def of(cls, batches: Sequence[Batch], levels: Sequence[float], graph: Path) -> Judge:
        """With the forecasts of the float32 graph."""
        return cls(batches, levels, _forecasts(graph, batches, levels))

    def errors(self, graph: Path | bytes) -> dict[str, float]:
        """See `graph_errors`."""
        return graph_errors(self.before, _forecasts(graph, self.batches, self.levels), self.batches, self.levels)


@dataclass(frozen=True)
class Made:
    """What is written.

    Attributes:
        graph: the float32 graph and its products.
        observed: what calibration found.
        stay: why each product that is in float32 is; the bound's last.
        alone: errors of the products that were measured one by one.
    """

    graph: Graph
    observed: Observed
    stay: Mapping[str, str]
    alone: Mapping[str, float]

    def model(self) -> Any:
        """The graph in int8."""
        chosen = [one.name for one in self.graph.products if one.name not in self.stay]
        return in_int8(self.graph, chosen, self.observed.grids, self.observed.shifts)

    def facts(self) -> dict[str, Any]:
        """JSON-able: how many products and which share of their multiplications are in int8, and which are not."""
        work = self.observed.work
        inside = [one for one in self.graph.products if one.name not in self.stay]
        left = [{"name": name, "why": why} for name, why in self.stay.items()]
        return {
            "all": len(self.graph.products),
            "int8": len(inside),
            "multiplications_in_int8": sum(work[one.name] for one in inside) / max(1, sum(work.values())),
            "weights_in_int8": sum(one.weight.size for one in inside),
            "float32": [one | ({"alone": self.alone[one["name"]]} if one["why"] == KEPT else {}) for one in left],
        }


class OnnxInt8(Export):
    """Products of int8 weights, a scale for each output, with activations rounded to ranges that calibration found.

    What reads raw values, gives the forecast or chooses experts stays in float32, and as many of the other products as
    the bound on the error takes. Biases take up the shift of the mean output that rounding brings.
    """

    title: ClassVar[str] = "ONNX graph in int8 for onnxruntime"
    calibrated: ClassVar[bool] = True

    def refusal(self, model: Forecaster) -> str:
        """As the float32 graph, which must also be small enough to be rewritten in memory."""
        if 4 * model.parameter_count() > EMBEDDED:
            return (
                f"the float32 graph of {model.parameter_count():,} parameters is larger than {EMBEDDED / 1e9:g} GB, "
                "which is not rewritten; cut the model first, or take --format onnx"
            )
        return FLOAT32.refusal(model)

    def usage(self, facts: Mapping[str, Any], name: str) -> str:
        """As the float32 graph, and where its speed comes from."""
        products = facts["products"]
        return (
            f"{FLOAT32.usage(facts, name)}\n\n{products['int8']} of {products['all']} matrix products, "
            f"{products['multiplications_in_int8']:.0%} of their multiplications, are in int8, by an operator of "
            "onnxruntime that runs on CPUs; processors with int8 instructions (AVX512-VNNI, AVX-VNNI, Arm dot "
            "products) gain most. Ranges are fixed: on series unlike those of the calibration, compare with the "
            "float32 graph first."
        )

    def write(self, request: Request) -> dict[str, Any]:
        """Write `model.onnx` and `model.json` as the float32 form does, and measure what int8 cost and gave.

        Args:
            request: `batches` judge, `calibration` fits; options: `error_bound`, see `BOUND`.

        Raises:
            TspruneError: too few windows, the float32 graph cannot be written, or nothing is left in int8.
        """
        check_packages("onnx_int8")
        refuse_options([name for name in request.options if name != "error_bound"], "onnx_int8")
        _enough(request)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            whole = FLOAT32.write(replace(request, out=folder, options={}))
            told = from_float32(request, folder)
        notes = [*whole["notes"], *_lines(told)]
        return {**told, "passes": whole["passes"], "float32_graph": whole["parity"], "notes": notes}


def from_float32(request: Request, folder: Path) -> dict[str, Any]:
    """The same of what the float32 form wrote into a folder.

    Raises:
        TspruneError: see `OnnxInt8.write`.
    """
    bound = float(request.options.get("error_bound", BOUND))
    made, judge = _made(request, folder / GRAPH, bound)
    content = _finished(made, request.out, read_json(folder / ABOUT))
    written = judge.errors(content)
    plain, about_plain = _plain(folder, judge)
    return {
        "files": sizes_of(request.out),
        "bytes_before": (folder / GRAPH).stat().st_size,
        "about": read_json(request.out / ABOUT),
        "calibration": {
            "windows": sum(batch.rows for batch in request.calibration),
            "of": request.calibrated_on or "windows that were given",
            "ranges": "smallest to largest value, also of shorter contexts and of contexts with gaps",
        },
        "products": made.facts(),
        "error": {
            "bound": bound,
            "windows": sum(batch.rows for batch in request.batches),
            "int8": {**written, "excess": excess(written)},
            "plain": about_plain,
        },
        "other_contexts": _elsewhere(request, folder / GRAPH, {"int8": content, "plain": plain}),
        "time": _times(folder / GRAPH, content, request.batches),
    }


def _enough(request: Request) -> None:
    """Refuse to calibrate or judge on next to nothing."""
    for batches, what in ((request.calibration, "calibration"), (request.batches, "comparison")):
        if (count := sum(batch.rows for batch in batches)) < FEWEST:
            raise TspruneError(
                f"--format onnx_int8 needs at least {FEWEST} windows for {what}, there are {count}; give a larger "
                "--windows, a file with longer or more series, or a shorter --horizon or --context"
            )


def _made(request: Request, path: Path, bound: float) -> tuple[Made, Judge]:
    """The choice, and the judge on the windows that steered nothing but how many products stay."""
    import onnx

    model = request.model
    graph = Graph(onnx.load(str(path)), _names(model))
    contexts = [_floats(batch.context) for batch in request.calibration]
    others = [_floats(case.context) for case in cases(request.calibration, model.context_length, model.patch)]
    with request.progress.stage("calibrate", 1) as bar:
        observed = observe(graph, contexts, others)
        bar.advance()
    stay = {one.name: one.fixed for one in graph.products if one.fixed}
    for one in graph.products:
        if one.name not in stay and any(name not in observed.grids for name in one.inputs):
            stay[one.name] = RARE
    free = [one.name for one in graph.products if one.name not in stay]
    if not free:
        raise TspruneError(
            f"nothing would be in int8: of the {len(graph.products)} products that are wide enough, each reads raw "
            "values, gives the forecast, chooses experts or is hardly used; take --format onnx"
        )
    judges = [Judge.of(part, model.levels, path) for part in (_thinned(request.calibration, TRIAL), request.batches)]

    def trial(chosen: Collection[str], over: Sequence[Judge]) -> float:
        content = in_int8(graph, chosen, observed.grids, observed.shifts).SerializeToString()
        return max(excess(judge.errors(content)) for judge in over)

    with request.progress.stage("hold the error bound", len(free)) as bar:

        def alone(name: str) -> float:
            found = trial([name], judges[:1])
            bar.advance()
            return found

        left = left_in_float32(free, observed.work, bound, alone, lambda chosen: trial(chosen, judges))
    if left is None:
        raise TspruneError(
            f"--error-bound {bound:g} leaves no product in int8, so nothing would be gained: even the least sensitive "
            f"one exceeds it; all together add {trial(free, judges):.2g}: give a larger bound, or take --format onnx"
        )
    return _with(graph, observed, stay, left), judges[1]


def _with(graph: Graph, observed: Observed, stay: Mapping[str, str], left: Left) -> Made:
    return Made(graph, observed, {**stay, **dict.fromkeys(left.names, KEPT)}, left.alone or {})


def _finished(made: Made, out: Path, about: Mapping[str, Any]) -> bytes:
    """Write the graph and what is to know of it; the graph's content."""
    import onnx

    model = made.model()
    facts = made.facts()
    said = f"int8 in {facts['int8']} of {facts['all']} products, float32 elsewhere"
    onnx.helper.set_model_props(model, {**{one.key: one.value for one in model.metadata_props}, "weights": said})
    content: bytes = model.SerializeToString()
    (out / GRAPH).write_bytes(content)
    write_json(out / ABOUT, {**about, "weights": said})
    return content


def _names(model: Forecaster) -> dict[str, str]:
    """Names of two-dimensional tensors, the public ones where there are such, by what a product's weight looks like."""
    found = {}
    for tensors in (model.state_dict(), model.tensors_to_public()):
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                array = tensor.detach().float().cpu().numpy()
                found[digest(array.T)] = name
    return found


def _floats(context: torch.Tensor) -> Floats:
    found: Floats = context.detach().cpu().float().numpy()
    return found


def _forecasts(graph: Path | bytes, batches: Sequence[Batch], levels: Sequence[float]) -> Forecasts:
    """As `tsprune.exports._errors.forecasts`, of a graph."""
    run = outputs(graph, ["quantiles"])
    found = []
    for batch in batches:
        parts = torch.split(batch.context, ROWS)
        quantiles = torch.cat([torch.from_numpy(run(_floats(part))[0]) for part in parts])
        found.append((quantiles, at_levels(quantiles, levels, (0.5,))[:, 0]))
    return found


def _thinned(batches: Sequence[Batch], most: int) -> list[Batch]:
    """At most so many rows, evenly spread."""
    every = max(1, -(-sum(batch.rows for batch in batches) // most))
    found = []
    for batch in batches:
        target = None if batch.target is None else batch.target[::every]
        found.append(Batch(batch.context[::every], target))
    return found


def _plain(folder: Path, judge: Judge) -> tuple[bytes, dict[str, Any]]:
    """The graph by the library's dynamic quantisation as it is by default, and its errors on the same windows."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / GRAPH
        try:
            with _no_advice():
                quantize_dynamic(folder / GRAPH, path)
            errors = judge.errors(path)
        except Exception as error:
            # It fails on some graphs in ways of its own; the comparison is then what is lacking, not the export.
            return b"", {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        return path.read_bytes(), {**errors, "excess": excess(errors), "bytes": path.stat().st_size}


@contextmanager
def _no_advice() -> Iterator[None]:
    """Without the library's advice to preprocess the file first, which it gives by the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _elsewhere(request: Request, path: Path, graphs: Mapping[str, bytes]) -> dict[str, Any]:
    """How far forecasts move on contexts of other lengths and with gaps, in standard deviations of each comparison."""
    before = outputs(path, ["quantiles"])
    compared = list(cases(request.batches, request.model.context_length, request.model.patch))
    told: dict[str, Any] = {"cases": len(compared)}
    for name, graph in graphs.items():
        found = []
        after = outputs(graph, ["quantiles"]) if graph else None
        for case in compared if after else ():
            (wanted,), (given,) = before(_floats(case.context)), after(_floats(case.context))  # type: ignore[misc]
            if name == "int8" and not np.isfinite(given).all():
                raise TspruneError(f"the int8 graph gives values that are not finite ({case.said}); nothing was kept")
            found.append(float(np.sqrt(np.square(given - wanted).mean())) / (float(wanted.std()) or 1.0))
        if found:
            told[name] = {"median": float(np.median(found)), "worst": max(found)}
    return told


def _times(path: Path, content: bytes, batches: Sequence[Batch]) -> dict[str, Any]:
    """Processor time over that of the float32 graph, by rows of a batch; medians of turns on one thread."""
    from tsprune.evaluation.cost import taking_turns, threads_set

    rows = _floats(torch.cat([batch.context for batch in batches]))
    found: dict[str, Any] = {"threads": 1}
    with threads_set(1):
        runs = {"float32": outputs(path, ["quantiles"]), "int8": outputs(content, ["quantiles"])}
        for count in (1, ROWS):
            context = np.resize(rows, (count, rows.shape[1]))
            timed = taking_turns({name: partial(run, context) for name, run in runs.items()}, REPEATS)
            ratio = timed["int8"].cpu_ms / timed["float32"].cpu_ms
            found[str(count)] = {"ratio": ratio, "busy": timed["int8"].busy}
    return found


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    """What a person should know."""
    products, error, plain = told["products"], told["error"], told["error"]["plain"]
    yield (
        f"int8: {products['int8']} of {products['all']} products, {products['multiplications_in_int8']:.0%} of their "
        f"multiplications; {told['files'][GRAPH]:,} bytes instead of {told['bytes_before']:,}"
    )
    reasons: dict[str, list[str]] = {}
    for one in products["float32"]:
        reasons.setdefault(one["why"], []).append(one["name"])
    for why, names in reasons.items():
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        yield f"in float32 ({why}): {', '.join(names[:4])}{more}"
    yield f"calibrated on {told['calibration']['windows']} windows: {told['calibration']['of']}"
    yield f"on {error['windows']} windows {_said(error['int8'])}; the bound is {error['bound']:.2%} above it"
    yield f"quantize_dynamic by default: {plain['failed'] if 'failed' in plain else _said(plain)}"
    times = [f"{one['ratio']:.2f} at a batch of {rows}" for rows, one in told["time"].items() if rows != "threads"]
    busy = any(one["busy"] for rows, one in told["time"].items() if rows != "threads")
    yield (
        f"processor time over that of the float32 graph, one thread of this machine: {', '.join(times)}"
        + (" (other programs were running, so roughly)" if busy else "")
    )
    if all(one["ratio"] >= 1 for rows, one in told["time"].items() if rows != "threads"):
        yield "it is smaller, but not faster here: the float32 graph serves as well"


def _said(errors: Mapping[str, float]) -> str:
    return (
        f"squared error {errors['mse_ratio']:.4f} and quantile loss {errors['quantile_loss_ratio']:.4f} times those of "
        f"float32, forecasts move by {errors['relative_difference']:.2%} of their deviation"
    )


EXPORT = OnnxInt8()
