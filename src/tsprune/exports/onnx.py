"""ONNX: one file that forecasts from raw series, served by onnxruntime without torch and without us."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray

from tsprune.__about__ import __version__
from tsprune.errors import TspruneError
from tsprune.exports._export import Export, Request
from tsprune.exports._graph import MOST_PASSES, in_float32, passes, quiet, traced, untraceable
from tsprune.exports._origin import origin
from tsprune.exports._parity import Parity, Run, cases
from tsprune.models._forecaster import Forecaster
from tsprune.stages import write_json

OPSET = 20
"""Set of operations of the file; onnxruntime 1.17 and later run it."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
GRAPH, ABOUT = "model.onnx", "model.json"
EMBEDDED = 1_500_000_000
"""Bytes of weights up to which they stand in the file itself; formats of this kind end at two gigabytes."""


class Onnx(Export):
    """The graph with the weights in it, and a small JSON that says what goes in and comes out."""

    title: ClassVar[str] = "ONNX graph for onnxruntime"

    def refusal(self, model: Forecaster) -> str:
        """Why the model's way from series to forecast is no graph."""
        return untraceable(model)

    def usage(self, facts: Mapping[str, Any], name: str) -> str:
        """Serving by onnxruntime alone."""
        about, place = facts["about"], f"snapshot_download({name!r})" if "/" in name else repr(name)
        fetch = "from huggingface_hub import snapshot_download\n" if "/" in name else ""
        rows, levels, horizon = about["output"]["shape"]
        asked = ", ".join(f"{level:g}" for level in about["levels"])
        return f"""onnxruntime runs it without torch and without tsprune. Raw series go in, NaN where a value
is missing; quantiles of {horizon} steps come out, at the levels {asked}.
The newest {about["context_limit"]} steps of context are used, and {about["input"]["rows"]}.
`model.json` says the same to programs.

```python
import numpy as np
import onnxruntime
{fetch}
session = onnxruntime.InferenceSession({place} + "/{GRAPH}")
context = np.array([[112.0, 118.0, np.nan, 129.0, 121.0, 135.0]], dtype=np.float32)  # [{rows}, length]
(quantiles,) = session.run(["quantiles"], {{"context": context}})  # [{rows}, {levels}, {horizon}]
```

tsprune itself loads the model that the graph was made of, not the graph."""

    def write(self, request: Request) -> dict[str, Any]:
        """Write `model.onnx` and `model.json`, run the file by onnxruntime and compare it with the model.

        Raises:
            TspruneError: a package is missing, the horizon takes too many passes, or the file does not reproduce the
                model.
        """
        check_packages()
        refuse_options(request.options, "onnx")
        model, steps = in_float32(request.model), request.horizon
        if (count := passes(model, steps)) > MOST_PASSES:
            raise TspruneError(
                f"--horizon {steps} takes {count} passes of this model, one behind the other, and a graph of more than "
                f"{MOST_PASSES} is not written; give a --horizon that takes fewer, such as {model.native_horizon}, the "
                "steps of its longest pass"
            )
        about = {**_interface(model, steps), **origin(model, request.source)}
        path = request.out / GRAPH
        with request.progress.stage("trace and translate", 2) as bar:
            program = traced(model, steps)
            bar.advance()
            _save(program, path, about)
            bar.advance()
        write_json(request.out / ABOUT, about)
        parity = Parity(model, steps, session(path))
        compared = list(cases(request.batches, model.context_length, model.patch))
        with request.progress.stage("compare with the model", len(compared)) as bar:
            for case in compared:
                parity.check(case)
                bar.advance()
        files = {file.name: file.stat().st_size for file in sorted(request.out.iterdir())}
        notes = [] if request.model.dtype == torch.float32 else [f"weights of {request.model.dtype} became float32"]
        return {"files": files, "passes": count, "parity": parity.facts(), "about": about, "notes": notes}


def check_packages(form: str = "onnx") -> None:
    """Refuse when a package is missing.

    Raises:
        TspruneError: names them and the extra that brings them.
    """
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise TspruneError(f"--format {form} needs {', '.join(lacking)}; install tsprune[onnx]")


def refuse_options(options: Collection[str], form: str) -> None:
    """Refuse options that do nothing here.

    Raises:
        TspruneError: names them.
    """
    if options:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise TspruneError(f"{given}: without effect on --format {form}; leave it out")


def session(path: Path) -> Run:
    """What runs a written file, on as many threads as torch uses."""
    run = outputs(path, ["quantiles"])
    return lambda context: run(context)[0]


def outputs(graph: Path | bytes, names: Sequence[str]) -> Callable[[NDArray[Any]], list[Any]]:
    """The same of a file or of the content of one, with any of its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    given = graph if isinstance(graph, bytes) else str(graph)
    made = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    return lambda context: list(made.run(list(names), {"context": context}))


def _interface(model: Forecaster, steps: int) -> dict[str, Any]:
    """What goes in and what comes out."""
    rows = "every row is a series by itself: rows of a batch do not see each other"
    return {
        "made_by": f"tsprune {__version__}",
        "family": model.family,
        "parameters": model.parameter_count(),
        "opset": OPSET,
        "input": {"name": "context", "type": "float32", "shape": ["batch", "length"], "missing": "NaN", "rows": rows},
        "output": {"name": "quantiles", "type": "float32", "shape": ["batch", len(model.levels), steps]},
        "levels": list(model.levels),
        "horizon": steps,
        "context_limit": model.context_length,
        "longer_context": "the newest steps are used",
    }


def _save(program: Any, path: Path, about: dict[str, Any]) -> None:
    """Translate an exported program and write it, with what there is to know among its metadata."""
    import onnx_ir

    with torch.no_grad(), quiet():
        found = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, output_names=["quantiles"], verbose=False
        )
    if found is None:
        raise TspruneError("torch gave no ONNX program; the installed versions of torch and onnxscript do not fit")
    made = found.model
    for node in onnx_ir.traversal.RecursiveGraphIterator(made.graph):
        # Where each operation stood in the code, with the paths of this machine.
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    made.graph.inputs[0].shape = onnx_ir.Shape(["batch", "length"])
    made.graph.outputs[0].shape = onnx_ir.Shape(about["output"]["shape"])
    made.producer_name, made.producer_version = "tsprune", __version__
    made.metadata_props.update({name: _text(about[name]) for name in SHOWN})
    made.metadata_props["series"] = about["input"]["rows"]
    found.save(str(path), external_data=4 * about["parameters"] > EMBEDDED)


SHOWN = ("family", "levels", "horizon", "context_limit", "base_model", "licence")
"""What the file itself says."""


def _text(value: Any) -> str:
    return ",".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)


EXPORT = Onnx()
