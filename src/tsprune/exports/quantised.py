"""Weights as small integers: one file that can be read at several widths, down to 3 bits or fewer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tsprune.errors import TspruneError
from tsprune.exports._calibration import as_rows, mean_inputs
from tsprune.exports._errors import Forecasts, forecast_errors, forecasts
from tsprune.exports._export import Export, Request
from tsprune.exports._files import sizes_of
from tsprune.exports._markdown import loading
from tsprune.exports._rounding import CORRECTIONS, Width, chosen, rounded, shift
from tsprune.models._forecaster import Forecaster
from tsprune.models._loading import load, save
from tsprune.models._packedbits import largest, pack
from tsprune.models._quantised import CODES, ENTRY, OFFSET, SCALE, Layout, narrowed
from tsprune.models._weightfiles import CONFIG, WEIGHTS
from tsprune.stages import read_json, write_json
from tsprune.training_state import write_tensors

USUAL = (8, 6, 5, 4, 3)
METADATA = {"format": "pt"}
Widths = dict[str, Width]
"""By public name of the tensor."""


@dataclass(frozen=True)
class Source:
    """What is to be quantised.

    Args:
        tensors: of the model, in the public layout.
        inputs: what a mean token brings to each weight that is quantised, see `mean_inputs`.
    """

    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]

    @classmethod
    def of(cls, request: Request) -> Source:
        """The tensors of the request's model, calibrated on its windows."""
        tensors = {name: t.detach().cpu() for name, t in request.model.tensors_to_public().items()}
        inputs = mean_inputs(request.model, request.batches, request.horizon)
        own = {name: inputs[name] for name, t in tensors.items() if name in inputs and t.shape == inputs[name].shape}
        return cls(tensors, own)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the quantised tensors."""
        return {name: tuple(self.tensors[name].shape) for name in self.inputs}

    def codes(self, bits: int) -> dict[str, Tensor]:
        """Codes of that many bits of every quantised weight."""
        return {name: rounded(as_rows(self.tensors[name]), bits) for name in self.inputs}

    def widths(self, codes: Mapping[str, Tensor], stored: int, bits: int, correction: str) -> Widths:
        """How the stored codes become weights of fewer bits."""
        return {
            name: chosen(
                as_rows(self.tensors[name]),
                as_rows(self.inputs[name]),
                narrowed(codes[name], stored, bits),
                bits,
                correction,
            )
            for name in self.inputs
        }

    def restored(self, widths: Widths) -> dict[str, Tensor]:
        """All tensors in floating point, as loading restores them."""
        return {
            name: widths[name].weights().view(tensor.shape) if name in widths else tensor
            for name, tensor in self.tensors.items()
        }

    def stored(self, codes: Mapping[str, Tensor], bits: int, widths: Mapping[int, Widths]) -> dict[str, Tensor]:
        """The tensors of the file: see `tsprune.models._quantised`."""
        found = {name: tensor for name, tensor in self.tensors.items() if name not in self.inputs}
        for name in self.inputs:
            found[f"{name}{CODES}"] = pack(codes[name], bits)
            for width, made in widths.items():
                found[f"{name}{SCALE}.{width}"] = made[name].scale
                if bool(made[name].corrected.any()):
                    found[f"{name}{OFFSET}.{width}"] = made[name].offset
        return found


class Quantised(Export):
    """Integers of a few bits for the weights of maps, floating point for everything else.

    Weights are rounded to the nearest, with one scale for each output channel. With a correction, output channels whose
    mean output moves less for it get back the mean and the variance that their weights had. On loading the weights are
    turned into floating point again: what shrinks is the file, not the memory or the time of a forecast.
    """

    title = "quantised, integers of 8 to 3 bits"

    def refusal(self, model: Forecaster) -> str:
        """Weights of half precision are refused: their rounding would be mixed up with that of the integers."""
        if model.dtype not in (torch.float32, torch.float64):
            return f"weights are {str(model.dtype).removeprefix('torch.')}; load the model as float32"
        return ""

    def usage(self, facts: Mapping[str, Any], name: str) -> str:
        """Loading at one of the widths."""
        widths = [int(width) for width in facts["widths"]]
        return (
            f"Weights are integers; one file is read at {', '.join(map(str, widths))} bits, the widest unless another "
            "is named. On loading they become floating point again: the file is small, memory and time are not.\n\n"
            f"{loading(name, facts['horizon'], width=min(widths))}"
        )

    def write(self, request: Request) -> dict[str, Any]:
        """Write the integers, load them back at every width and compare with what was meant.

        Args:
            request: options are `bits`, the widths the file can be read at (8, 6, 5, 4, 3), and `correction`:
                `where_better` (as usual), `none` or `everywhere`. With one width alone the file has as many bits for
                every weight, with several the bits of the widest.

        Returns:
            `files` with their bytes; `bytes_before`, of the weights in floating point; `quantised`, tensors, weights
            and their share; `widths`, for each the `bytes_alone` of a file of that width and errors of `plain`
            rounding and of what was `written`, see `_told`; `notes` for people. Forecasts are judged on the windows
            that say which channels are corrected.
        """
        bits, correction = _choices(request.options)
        if reason := self.refusal(request.model):
            raise TspruneError(reason)
        source = Source.of(request)
        if not source.inputs:
            raise TspruneError("the model has no map that is large enough to be quantised; save it as it is")
        codes = source.codes(bits[0])
        made = {width: source.widths(codes, bits[0], width, correction) for width in bits}
        layout = Layout(bits, correction, source.shapes)
        _write(request, source.stored(codes, bits[0], made), layout)
        before = forecasts(request.model, request.batches, request.horizon)
        told = {}
        with request.progress.stage("widths", len(bits)) as bar:
            for width in bits:
                _check(request, source.restored(made[width]), width)
                rough = made[width] if correction == "none" else source.widths(codes, bits[0], width, "none")
                told[str(width)] = {
                    "bytes_alone": bytes_alone(source, width, correction),
                    "plain": _told(request, source, rough, before),
                    "written": _told(request, source, made[width], before),
                }
                bar.advance()
        weights = sum(source.tensors[name].numel() for name in source.inputs)
        total = sum(tensor.numel() for tensor in source.tensors.values())
        return {
            "files": sizes_of(request.out),
            "bytes_before": len(safetensors.torch.save(_whole(source.tensors), METADATA)),
            "quantised": {"tensors": len(source.inputs), "weights": weights, "share": weights / total},
            "correction": correction,
            "widths": told,
            "notes": [_line(bits, one) for bits, one in told.items()],
        }


def bytes_alone(source: Source, bits: int, correction: str) -> int:
    """Bytes of `model.safetensors` when one width is exported alone."""
    codes = source.codes(bits)
    stored = source.stored(codes, bits, {bits: source.widths(codes, bits, bits, correction)})
    return len(safetensors.torch.save(_whole(stored), METADATA))


def variant(model: Forecaster, tensors: Mapping[str, Tensor]) -> Forecaster:
    """A copy of a model with other tensors, given in the public layout."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(twin.tensors_from_public(dict(tensors)))
    return twin


def _choices(options: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    """Widths, the widest first, and the correction."""
    bits, correction = options.get("bits") or USUAL, options.get("correction", "where_better")
    wanted = (bits,) if isinstance(bits, int) else tuple(bits)
    for width in wanted:
        if not isinstance(width, int) or isinstance(width, bool):
            raise TspruneError(f"--bits: {width!r} is not a whole number")
        try:
            largest(width)
        except TspruneError as error:
            raise TspruneError(f"--bits: {error}") from None
    if correction not in CORRECTIONS:
        raise TspruneError(f"correction is {correction!r}, expected one of {', '.join(CORRECTIONS)}")
    return tuple(sorted(set(wanted), reverse=True)), correction


def _write(request: Request, tensors: Mapping[str, Tensor], layout: Layout) -> None:
    """The checkpoint as it is always saved, then its weights and its config with the integers in their place."""
    save(request.model, request.out)
    write_tensors(request.out / WEIGHTS, tensors, METADATA)
    write_json(request.out / CONFIG, {**read_json(request.out / CONFIG), ENTRY: layout.to_json()})


def _check(request: Request, meant: Mapping[str, Tensor], width: int) -> None:
    """What is loaded at a width must be, bit by bit, what was meant."""
    again = load(request.out, bits=width)
    expected = again.tensors_from_public(dict(meant))
    wrong = [n for n, t in again.state_dict().items() if not torch.equal(t, expected[n].to(t.dtype))]
    if wrong:
        raise TspruneError(
            f"{request.out} read at {width} bits holds another {wrong[0]} than was written; this is a defect of "
            "tsprune, please report it"
        )


def _told(request: Request, source: Source, widths: Widths, before: Forecasts) -> dict[str, Any]:
    """Errors of one width.

    Returns:
        `weight_error`, root mean square change of the weights over their root mean square; `mean_shift`, mean over
        output channels of how far their mean output on the calibration windows moves; `corrected`, share of the
        output channels with mean and variance restored; and those of `forecast_errors`.
    """
    off = square = moved = 0.0
    rows = taken = 0
    for name, width in widths.items():
        weight = as_rows(source.tensors[name])
        off += float((width.weights().double() - weight.double()).square().sum())
        square += float(weight.double().square().sum())
        moved += float(shift(weight, width, as_rows(source.inputs[name])).sum())
        rows, taken = rows + len(weight), taken + int(width.corrected.sum())
    twin = variant(request.model, source.restored(widths))
    return {
        "weight_error": (off / square) ** 0.5 if square else 0.0,
        "mean_shift": moved / max(1, rows),
        "corrected": taken / max(1, rows),
        **forecast_errors(before, forecasts(twin, request.batches, request.horizon), request.batches),
    }


def _line(bits: str, told: Mapping[str, Any]) -> str:
    """What a person should know of a width."""
    written = told["written"]
    found = f"{bits} bits: forecasts move by {written['relative_difference']:.2%} of their deviation"
    if "mse_ratio" in written:
        found += f", squared error {written['mse_ratio']:.3f} times that of the model"
    return f"{found}; {told['bytes_alone']:,} bytes when exported alone"


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


EXPORT = Quantised()
