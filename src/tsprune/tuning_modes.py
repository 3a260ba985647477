"""What of a model trains: everything, the forecast head, or low-rank adapters; and how it becomes ordinary again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tsprune.dropouts import dropout_rates, set_dropout
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.settings import FinetuneSettings

Values = Mapping[str, Tensor]


class Trainee:
    """A float32 copy of a model, of which all or a part trains.

    Args:
        model: dense or slim; not changed.
        dropout: rate of every dropout while it trains; None leaves the model's own.

    Attributes:
        network: what runs in training.
    """

    def __init__(self, model: Forecaster, dropout: float | None = None) -> None:
        self.network = copy.deepcopy(model).float()
        self._own_rates = dropout_rates(self.network)
        if dropout is not None:
            set_dropout(self.network, dropout)
        self.choose()
        self._dead = [_Dead(module) for module in self.network.modules() if any(getattr(module, "dead", {}).values())]

    def choose(self) -> None:
        """Mark what trains; here everything."""
        self.network.requires_grad_(True)

    @property
    def stored(self) -> nn.Module:
        """The module whose state a checkpoint holds."""
        return self.network

    def tensors(self) -> dict[str, Tensor]:
        """The living tensors that training changes, by name."""
        return dict(self.network.state_dict())

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def values(self) -> dict[str, Tensor]:
        """Copies of what training changes."""
        return {name: value.detach().clone() for name, value in self.tensors().items()}

    @torch.no_grad()
    def load(self, values: Values) -> None:
        """Put these values in place."""
        for name, tensor in self.tensors().items():
            tensor.copy_(values[name])

    def settle(self) -> None:
        """To be called after each step: channels that were pruned by zeroing stay zero."""
        for dead in self._dead:
            dead.silence()

    @contextmanager
    def holding(self, values: Values) -> Iterator[Forecaster]:
        """An ordinary model with these values, for the duration of the block."""
        before = self.values()
        self.load(values)
        try:
            yield self.network
        finally:
            self.load(before)

    def ordinary(self, values: Values) -> Forecaster:
        """The model with these values, in eval mode, with its own dropout rates; training is over then."""
        self.load(values)
        set_dropout(self.network, self._own_rates)
        return self.network.requires_grad_(True).eval()


class HeadTrainee(Trainee):
    """Only the forecast head trains; every other tensor stays as it is."""

    def choose(self) -> None:
        """Freeze all but what lies under the family's `head_paths`.

        Raises:
            TspruneError: the family names no head.
        """
        check_head(self.network)
        self.network.requires_grad_(False)
        for path in self.network.head_paths:
            self.network.get_submodule(path).requires_grad_(True)

    @property
    def stored(self) -> nn.Module:
        """The head alone: the rest is known from the model that training started from."""
        return nn.ParameterList(self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """The parameters of the head."""
        return {name: p.detach() for name, p in self.network.named_parameters() if p.requires_grad}


def check_head(model: Forecaster, flag: str = "--tuning head", cure: str = "use --tuning full or lora") -> None:
    """Raise TspruneError, with this flag and cure, when the family does not say which part is its forecast head."""
    if not model.head_paths:
        raise TspruneError(f"{flag}: family {model.family} does not say which part is its forecast head; {cure}")


class _Dead:
    """Rows and columns of a linear map that were pruned by zeroing in place, and are to stay zero."""

    def __init__(self, module: nn.Module) -> None:
        dead: Mapping[str, tuple[int, ...]] = module.dead  # type: ignore[assignment]
        self.module = module
        self.rows, self.columns = list(dead.get("out_channel", ())), list(dead.get("in_channel", ()))

    @torch.no_grad()
    def silence(self) -> None:
        weight, bias = self.module.weight, self.module.bias
        if not isinstance(weight, Tensor):
            return
        weight[self.rows] = 0
        weight[:, self.columns] = 0
        if isinstance(bias, Tensor):
            bias[self.rows] = 0


def trainee(model: Forecaster, settings: FinetuneSettings, seed: int = 0) -> Trainee:
    """A copy of the model ready to be tuned in the mode that the settings name.

    Args:
        model: dense or slim; not changed.
        settings: `tuning`, `dropout`, and for adapters `lora_rank` and `lora_alpha` are read.
        seed: of the first weights of adapters.

    Raises:
        TspruneError: the mode cannot be had for this model, or needs a package that is not installed.
    """
    if settings.tuning == "full":
        return Trainee(model, settings.dropout)
    if settings.tuning == "head":
        return HeadTrainee(model, settings.dropout)
    from tsprune.adapters import AdapterTrainee

    return AdapterTrainee(model, settings, seed)
