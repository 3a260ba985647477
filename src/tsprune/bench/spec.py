"""A grid as its YAML file says it: models, data, horizons, candidates, baselines, seeds, and settings for all."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune import registry
from tsprune.candidates import DEFAULT, DENSE, ordered, tuned
from tsprune.data.reading import ReadOptions
from tsprune.data.words import listed
from tsprune.errors import TspruneError
from tsprune.evaluation import protocols
from tsprune.flags import mapping, validated
from tsprune.settings import BaselineSettings, FinetuneSettings, PruneSettings, TaskSettings

if TYPE_CHECKING:
    from tsprune.evaluation.protocols._protocol import Protocol

RECIPES = "tsprune.bench.recipes"
PROTOCOLS = "tsprune.evaluation.protocols"
# What a grid says in its own words.
_OWN = {"data", "model", "horizon", "split", "seed", "test_windows", "latency_batch", "threads", "train_share"}
SECTIONS = (TaskSettings, PruneSettings, FinetuneSettings)
SETTINGS = tuple(entry.name for section in SECTIONS for entry in fields(section) if entry.name not in _OWN)


@dataclass(frozen=True)
class ModelEntry:
    """One of the models.

    Args:
        name: in every table.
        path: what `--model` takes.
        settings: of tasks, pruning and tuning where they differ from the grid's.
        seeds: where it gets fewer than the grid has; empty for all.
    """

    name: str
    path: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class DataEntry:
    """One of the data sets.

    Args:
        name: a published one of the protocol, or any name with a `file`.
        file: CSV, CSV.gz or Parquet of one's own; "" reads the published set from the grid's folder.
        read: how to read the file: fields of `ReadOptions`.
        protocol: settings of the protocol where they differ from the grid's.
        settings: of tasks, pruning and tuning where they differ from the grid's and the model's.
    """

    name: str
    file: str = ""
    read: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """A grid.

    Args:
        name: of the grid, for people.
        models: at least one.
        data: at least one.
        horizons: steps to forecast; of protocols that fix them, 0.
        candidates: what is trained from every model; names in `tsprune.candidates`.
        baselines: names in `tsprune.evaluation.baselines`.
        seeds: of everything that draws; candidates are trained once with each.
        shares: shares of the training windows, the latest ones; 1 is all of them.
        recipe: what is made of it, a name in `tsprune.bench.recipes`.
        protocol: how it is judged, a name in `tsprune.evaluation.protocols`.
        protocol_settings: other than data and horizon.
        folder: of the published data sets.
        reference: the candidate that all are compared with.
        scratch: for candidates from scratch: `context` in time steps, training `steps` at most (0: as published), and
            whether only the `small` size is trained; `seeds` where they get fewer, which then stand in for the others.
        latency: whether latencies are measured at the end.
        settings: any field of tasks, pruning and tuning, for all.
    """

    name: str
    models: tuple[ModelEntry, ...]
    data: tuple[DataEntry, ...]
    horizons: tuple[int, ...] = (0,)
    candidates: tuple[str, ...] = DEFAULT
    baselines: tuple[str, ...] = ("seasonal_naive",)
    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[float, ...] = (1.0,)
    recipe: str = "grid"
    protocol: str = "ltsf"
    protocol_settings: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    reference: str = DENSE
    scratch: Mapping[str, Any] = field(default_factory=dict)
    latency: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        _refuse_empty(self)
        _refuse_twice(self)
        _refuse_unknown(self)
        if min(self.seeds) < 0 or not all(0 < share <= 1 for share in self.shares):
            raise TspruneError(
                f"seeds are {list(self.seeds)} and shares {list(self.shares)}; seeds must not be negative, and a share "
                "lies above 0 and at most at 1"
            )
        if self.reference not in (*self.candidates, *self.baselines, "zero_shot"):
            raise TspruneError(
                f"reference {self.reference!r} is neither among the candidates nor the baselines; name one of "
                f"{listed([*self.candidates, *self.baselines, 'zero_shot'], 20)}"
            )
        for entry in self.data:
            for horizon in self.horizons:
                self.protocol_of(entry, horizon)
        for model in self.models:
            for entry in self.data:
                self.sections(model, entry)

    def protocol_of(self, entry: DataEntry, horizon: int) -> Protocol:
        """The protocol of one data set and horizon.

        Raises:
            TspruneError: it does not allow them.
        """
        chosen: dict[str, Any] = {"data": entry.name, **self.protocol_settings, **entry.protocol}
        if entry.read:
            chosen["options"] = validated(ReadOptions, entry.read)
        given = {"horizon": horizon} if horizon else {}
        return protocols.make(self.protocol, **given, **chosen)

    def sections(self, model: ModelEntry, entry: DataEntry, **more: Any) -> tuple[Any, Any, Any]:
        """Settings of task, pruning and tuning for one model on one data set; `more` wins over all.

        Raises:
            TspruneError: a value has the wrong type or means nothing.
        """
        values = {**self.settings, **model.settings, **entry.settings, **more}
        # How many threads work changes the rounding, and with it what two machines agree on.
        values |= {"model": model.path, "threads": 1}
        made = []
        for section in SECTIONS:
            names = {one.name for one in fields(section)}
            made.append(validated(section, {key: value for key, value in values.items() if key in names}))
        return made[0], made[1], made[2]

    def source(self, entry: DataEntry) -> str:
        """Where the protocol reads a data set from."""
        return entry.file or self.folder

    def tuned(self) -> tuple[str, ...]:
        """Candidates that start from a model."""
        return tuple(tuned(self.candidates))

    def fresh(self) -> tuple[str, ...]:
        """Candidates from scratch, which belong to no model."""
        return tuple(name for name in self.candidates if name not in self.tuned())

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """Seeds of networks from scratch."""
        given = self.scratch.get("seeds") or self.seeds
        return tuple(given) if isinstance(given, list | tuple) else (given,)

    def seeds_of(self, model: ModelEntry) -> tuple[int, ...]:
        """Seeds of a model's candidates."""
        return model.seeds or self.seeds

    def to_json(self) -> dict[str, Any]:
        """As plain data, from which `of` makes it again."""
        return asdict(self)


def read(path: Path, folder: str = "") -> Spec:
    """The grid of a YAML file.

    Args:
        path: of the file.
        folder: of the published data sets; wins over the file's.

    Raises:
        TspruneError: the file cannot be read, or does not describe a grid; says what is wrong where.
    """
    content = mapping(path, "")
    try:
        return of({**content, **({"folder": folder} if folder else {})}, path.stem)
    except TspruneError as error:
        raise TspruneError(f"{path}: {error}") from None


def of(content: Mapping[str, Any], name: str = "bench") -> Spec:
    """A grid from plain data; keys that are no part of `Spec` must be settings of tasks, pruning or tuning."""
    own = {entry.name for entry in fields(Spec)}
    values: dict[str, Any] = {"name": name}
    loose: dict[str, Any] = dict(content.get("settings") or {})
    for key, value in content.items():
        key = str(key).replace("-", "_")
        if key in own:
            if value is not None:
                values[key] = value
        elif key in SETTINGS:
            loose[key] = value
        else:
            _unknown(key, [*sorted(own - {"settings"}), *SETTINGS])
    values["settings"] = _settings(loose, "settings")
    for key in ("models", "data"):
        if key not in values:
            raise TspruneError(f"{key} is missing; name at least one, such as {key}: [{_EXAMPLES[key]}]")
    values["models"] = tuple(_model(entry) for entry in _list(values["models"], "models"))
    values["data"] = tuple(_data(entry) for entry in _list(values["data"], "data"))
    for key in ("candidates", "baselines"):
        if key in values:
            values[key] = tuple(str(part) for part in _list(values[key], key))
    for key in ("horizons", "seeds"):
        if key in values:
            values[key] = tuple(_whole(part, key) for part in _list(values[key], key))
    if "shares" in values:
        values["shares"] = tuple(_number(part, "shares") for part in _list(values["shares"], "shares"))
    for key in ("protocol_settings", "scratch"):
        if not isinstance(values.get(key, {}), Mapping):
            raise TspruneError(f"{key} is {values[key]!r}, expected lines of 'name: value'")
    if not isinstance(values.get("latency", True), bool):
        raise TspruneError(f"latency is {values['latency']!r}, expected true or false")
    if "candidates" in values:
        values["candidates"] = ordered(values["candidates"])
    if "baselines" in values:
        values["baselines"] = BaselineSettings(values["baselines"]).baselines
    return Spec(**values)


_EXAMPLES = {"models": "mini", "data": "ETTh1"}


def _model(given: Any) -> ModelEntry:
    if isinstance(given, str):
        return ModelEntry(Path(given).name if Path(given).exists() else given, given)
    entry = _entry(given, "models", ("name", "path", "seeds"), SETTINGS)
    path = str(entry["own"].get("path") or entry["own"].get("name") or "")
    if not path:
        raise TspruneError(f"an entry of models has neither name nor path: {dict(given)}")
    seeds = tuple(_whole(seed, "models.seeds") for seed in _list(entry["own"].get("seeds", ()), "models.seeds", 0))
    return ModelEntry(str(entry["own"].get("name") or path), path, _settings(entry["settings"], "models"), seeds)


def _data(given: Any) -> DataEntry:
    if isinstance(given, str):
        return DataEntry(given)
    entry = _entry(given, "data", ("name", "file", "read", "protocol"), SETTINGS)
    own = entry["own"]
    name = str(own.get("name") or Path(str(own.get("file", ""))).name.split(".")[0])
    if not name:
        raise TspruneError(f"an entry of data has neither name nor file: {dict(given)}")
    parts: dict[str, Mapping[str, Any]] = {}
    for key in ("read", "protocol"):
        found = own.get(key) or {}
        if not isinstance(found, Mapping):
            raise TspruneError(f"{key} of data {name!r} is {found!r}, expected lines of 'name: value'")
        parts[key] = dict(found)
    if odd := set(parts["read"]) - {one.name for one in fields(ReadOptions)}:
        _unknown(f"read.{sorted(odd)[0]}", [f"read.{one.name}" for one in fields(ReadOptions)])
    return DataEntry(name, str(own.get("file") or ""), settings=_settings(entry["settings"], "data"), **parts)


def _entry(given: Any, where: str, own: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """An entry of a list that is not just a name, its keys sorted by what they are."""
    if not isinstance(given, Mapping):
        raise TspruneError(f"an entry of {where} is {given!r}, expected a name or lines of 'key: value'")
    found: dict[str, dict[str, Any]] = {"own": {}, "settings": dict(given.get("settings") or {})}
    for key, value in given.items():
        key = str(key).replace("-", "_")
        if key in own:
            found["own"][key] = value
        elif key in settings:
            found["settings"][key] = value
        elif key != "settings":
            _unknown(f"{where}.{key}", [f"{where}.{name}" for name in (*own, *settings)])
    return found


def _settings(given: Any, where: str) -> dict[str, Any]:
    """Settings of tasks, pruning and tuning as plain data; what they mean is checked with the rest."""
    for key in given:
        if key not in SETTINGS:
            _unknown(f"{where}.{key}", [f"{where}.{name}" for name in SETTINGS])
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


def _list(given: Any, key: str, least: int = 1) -> list[Any]:
    found = list(given) if isinstance(given, list | tuple) else [given]
    if len(found) < least:
        raise TspruneError(f"{key} is empty; name at least one, or leave it out for the default")
    return found


def _whole(given: Any, key: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int):
        raise TspruneError(f"{key} holds {given!r}, expected whole numbers")
    return given


def _number(given: Any, key: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TspruneError(f"{key} holds {given!r}, expected numbers")
    return float(given)


def _unknown(key: str, known: Sequence[str]) -> None:
    near = difflib.get_close_matches(key, known, 1)
    raise TspruneError(f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {listed(known)}"))


def _refuse_empty(spec: Spec) -> None:
    for key in ("models", "data", "horizons", "seeds", "shares"):
        if not getattr(spec, key):
            raise TspruneError(f"{key} is empty; name at least one")


def _refuse_twice(spec: Spec) -> None:
    """Names stand for what they name in every table."""
    named: dict[str, Sequence[Any]] = {
        "models": [entry.name for entry in spec.models],
        "data": [entry.name for entry in spec.data],
        **{key: getattr(spec, key) for key in ("horizons", "seeds", "shares")},
    }
    for key, found in named.items():
        if twice := sorted({one for one in found if list(found).count(one) > 1}):
            raise TspruneError(f"{key} holds {twice[0]!r} twice; give each a name of its own, or leave one out")


def _refuse_unknown(spec: Spec) -> None:
    registry.known(RECIPES, spec.recipe, "recipe")
    known = ("context", "steps", "small", "seeds")
    if odd := set(spec.scratch) - set(known):
        _unknown(f"scratch.{sorted(odd)[0]}", [f"scratch.{name}" for name in known])
    for where, seeds in [("scratch", spec.fresh_seeds), *((entry.name, spec.seeds_of(entry)) for entry in spec.models)]:
        if odd_seeds := [seed for seed in seeds if seed not in spec.seeds]:
            raise TspruneError(
                f"seeds of {where} hold {odd_seeds[0]!r}, which is not among the grid's {list(spec.seeds)}"
            )
    for key, value in spec.scratch.items():
        if key == "seeds":
            continue
        if key == "small" and not isinstance(value, bool):
            raise TspruneError(f"scratch.small is {value!r}, expected true or false")
        if key != "small" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise TspruneError(f"scratch.{key} is {value!r}, expected a whole number of 0 or more")
    for entry in spec.data:
        if not spec.source(entry) and not registry.find(PROTOCOLS, spec.protocol).PROTOCOL.knows_source:
            raise TspruneError(
                f"data {entry.name!r} has no file and the grid no folder; give 'folder:' (or --folder) with the "
                "published data sets, or the entry a 'file:'"
            )
