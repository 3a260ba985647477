"""From the network's last state to a mixture of distributions, for every step of a patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.distributions import Component, LogNormal, Mixture, NegativeBinomial, Normal, StudentT
from tsprune.blocks.patchsizes import Choice, PatchSizeLinear
from tsprune.errors import TspruneError
from tsprune.models._config import entry

Domain = Callable[[Tensor], Tensor]
LOGITS = "weights_logits"


def _as_is(x: Tensor) -> Tensor:
    return x


def _scale(x: Tensor) -> Tensor:
    return F.softplus(x).clamp(min=torch.finfo(x.dtype).eps)


def _freedom(x: Tensor) -> Tensor:
    return 2 + F.softplus(x)


KINDS: dict[str, tuple[type[Component], dict[str, Domain]]] = {
    "StudentTOutput": (StudentT, {"df": _freedom, "loc": _as_is, "scale": _scale}),
    "NormalOutput": (Normal, {"loc": _as_is, "scale": _scale}),
    "NormalFixedScaleOutput": (Normal, {"loc": _as_is}),
    "NegativeBinomialOutput": (NegativeBinomial, {"total_count": F.softplus, "logits": _as_is}),
    "LogNormalOutput": (LogNormal, {"loc": _as_is, "scale": _scale}),
}
"""Components by the name of the public class: ours, and what brings each raw parameter into its domain."""
FIXED = {"NormalFixedScaleOutput": {"scale": 1e-3}}


class MixtureHead(nn.Module):
    """Maps tokens to the parameters of a mixture for each step, one map per parameter and patch size (Moirai).

    Outputs of a parameter with K components lie component by component over the largest patch, while a patch size's
    weights are the first K times patch of them. So the later components of small patches have only a bias, as in the
    public code and thus in the public weights.

    Args:
        described: entry `distr_output` of the public config.
        width: residual width D.
        sizes: patch sizes; the largest is P.

    Raises:
        TspruneError: a distribution is not known here.
    """

    def __init__(self, described: Mapping[str, Any], width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        if _name(described) != "MixtureOutput" or not isinstance(described.get("components"), list | tuple):
            raise TspruneError(
                f"config.json: distr_output is {described.get('_target_')!r}, expected a MixtureOutput with components"
            )
        components = described["components"]
        self.fixed = [_fixed(component) for component in components]
        self.kinds = [_name(component) for component in components]
        self.steps = max(sizes)

        def maps(copies: int) -> PatchSizeLinear:
            return PatchSizeLinear([width] * len(sizes), [copies * size for size in sizes])

        parts = [nn.ModuleDict({name: maps(1) for name in KINDS[kind][1]}) for kind in self.kinds]
        self.proj = nn.ModuleDict({LOGITS: maps(len(parts)), "components": nn.ModuleList(parts)})

    def forward(self, x: Tensor, choice: Choice) -> dict[str, Tensor]:
        """Parameters in their domain, by public name: `[B, T, P]` each, the logits of the weights `[B, T, P, K]`."""

        def raw(path: str) -> Tensor:
            out: Tensor = self.proj.get_submodule(path)(x, choice)
            return out if out.dtype == torch.float64 else out.float()

        logits = raw(LOGITS)
        found = {LOGITS: logits.view(*logits.shape[:-1], -1, self.steps).transpose(-1, -2)}
        for number, kind in enumerate(self.kinds):
            for name, domain in KINDS[kind][1].items():
                path = f"components.{number}.{name}"
                found[path] = domain(raw(path))
        return found

    def mixture(self, parameters: Mapping[str, Tensor], location: Tensor, scale: Tensor) -> Mixture:
        """The distribution in own units of any selection of tokens and steps.

        Args:
            parameters: as `forward` gives them, `[...]` and `[..., K]`.
            location: of the series, broadcastable to `[...]`.
            scale: likewise.
        """
        components: list[Component] = []
        for number, kind in enumerate(self.kinds):
            made, domains = KINDS[kind]
            values = {name: parameters[f"components.{number}.{name}"][..., None] for name in domains}
            first = next(iter(values.values()))
            constants = {name: torch.full_like(first, value) for name, value in self.fixed[number].items()}
            components.append(made(**values, **constants))
        return Mixture(parameters[LOGITS], components, location, scale)


def _name(described: Mapping[str, Any]) -> str:
    """Name of the public class that a config entry describes."""
    return str(described.get("_target_", "")).rpartition(".")[2]


def _fixed(described: Any) -> dict[str, float]:
    """Constants of a component; anything that is not known is refused."""
    kind = _name(described) if isinstance(described, Mapping) else str(described)
    if kind not in KINDS:
        raise TspruneError(f"config.json: distr_output has a {kind!r}, known components are {', '.join(KINDS)}")
    known = FIXED.get(kind, {})
    if strange := [name for name in described if name not in {"_target_", *known}]:
        raise TspruneError(f"config.json: {kind} in distr_output has an entry {strange[0]!r}, which is not known")
    values = {name: entry(described, name, float, "moirai", default) for name, default in known.items()}
    if wrong := [name for name, value in values.items() if value <= 0]:
        raise TspruneError(f"config.json: {wrong[0]} of {kind} in distr_output is not positive")
    return values
