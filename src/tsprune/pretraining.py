"""Pretraining a model of a family from scratch on simulated series and, where given, a folder of real ones."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tsprune.blocks.branch import Branch
from tsprune.data.batch import Batch
from tsprune.data.corpus import Corpus
from tsprune.data.simulated import WindowSource
from tsprune.errors import TspruneError
from tsprune.modelcard import corpora, model_card
from tsprune.models._forecaster import Forecaster
from tsprune.models._loading import device_of, read_config
from tsprune.models._recognising import family_of
from tsprune.progress import Progress
from tsprune.registry import find
from tsprune.settings import PretrainSettings
from tsprune.stages import digest, write_text
from tsprune.training_state import load_training, save_training, write_tensors

Array = NDArray[np.float32]
LARGEST_GROUP = 8
FEWEST = 8
"""Observed values without which a context teaches nothing."""


def window_batch(values: Array, context: int, horizon: int, farthest: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cut windows into context and target, and say which are fit for training.

    Args:
        values: `[N, context + horizon]`, NaN = missing.
        context: steps of context.
        horizon: steps of target.
        farthest: targets further than so many deviations from the context's mean are ignored.

    Returns:
        Context `[N, context]`, target `[N, horizon]`, and usable `[N]` bool: windows whose context has no spread
        are not (their scaled loss explodes).
    """
    windows = torch.from_numpy(np.ascontiguousarray(values))
    past, target = windows[:, :context], windows[:, context : context + horizon]
    mean = past.nanmean(-1, keepdim=True)
    spread = (past - mean).square().nanmean(-1, keepdim=True).sqrt()
    size = torch.nan_to_num(past.abs(), nan=0.0).amax(-1)
    enough = (~past.isnan()).sum(-1) >= FEWEST
    usable = (spread[:, 0] > 1e-4 * size.clamp(min=1e-8)) & torch.isfinite(spread[:, 0]) & enough
    near = (target - mean).abs() <= farthest * spread
    return past, torch.where(near, target, torch.full_like(target, torch.nan)), usable


def without_outliers(losses: Tensor) -> Tensor:
    """Losses `[B]` without those of windows that nobody could forecast, such as a jump after a nearly constant past.

    What lies further above the median than a hundred times the middle half is wide is left out.
    """
    low, middle, high = torch.quantile(losses.detach().float(), losses.new_tensor([0.25, 0.5, 0.75]).float())
    kept: Tensor = losses[losses.detach() <= middle + 100 * (high - low)]
    return kept if len(kept) else losses


class Pretraining:
    """One pretraining run in a directory: made anew, or picked up where its checkpoint stands.

    Args:
        model: the model with fresh weights, in float32.
        out: directory of the checkpoint, the log and the finished model.
        settings: see `PretrainSettings`.
        corpus: real series, or None for simulated ones alone.
    """

    def __init__(self, model: Forecaster, out: Path, settings: PretrainSettings, corpus: Corpus | None) -> None:
        self.model = model.to(settings.device)
        self.out = out
        self.settings = settings
        ahead = model.native_horizon
        self.source = WindowSource(model.context_length + ahead, settings.seed, real=corpus, horizon=ahead)
        self.optimizers = make_optimizers(model, settings)
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.description = None if corpus is None else corpus.describe()
        self.corpus = "" if self.description is None else digest(self.description)
        self.step = 0
        self.seconds = 0.0

    def resume(self) -> bool:
        """Pick up the checkpoint in the directory, if there is one."""
        path = self.out / "checkpoint.safetensors"
        if not path.exists():
            return False
        facts, extra = load_training(path, self.model, self.optimizers)
        if facts.get("corpus", self.corpus) != self.corpus:
            raise TspruneError(f"{path}: the checkpoint was made with another --corpus; use the same or another --out")
        fixed = {k: v for k, v in asdict(self.settings).items() if k in MUST_AGREE}
        if differing := [k for k, v in fixed.items() if facts["settings"][k] != v]:
            name = differing[0]
            raise TspruneError(
                f"{path}: the checkpoint was made with --{name.replace('_', '-')} {facts['settings'][name]}, now it is "
                f"{fixed[name]}; use the same value or another --out"
            )
        self.average = extra
        self.step, self.seconds = facts["step"], facts["seconds"]
        self._cut_log()
        return True

    def run(self, report: Callable[[int, float], None]) -> Path:
        """Train to the last step and write the model; `report(step, loss)` is called every 50 steps."""
        settings = self.settings
        started = time.monotonic() - self.seconds
        losses: list[float] = []
        self.model.train()
        while self.step < settings.steps:
            losses.append(self.one_step())
            if self.step % 50 == 0:
                self.seconds = time.monotonic() - started
                recent = [loss for loss in losses[-50:] if not math.isnan(loss)]
                mean = float(np.mean(recent)) if recent else math.nan
                report(self.step, mean)
                self._log(mean)
            if self.step % settings.checkpoint_every == 0 or self.step == settings.steps:
                self.save()
        return self.write_model()

    def one_step(self) -> float:
        """One optimiser step; the loss is the mean over the batch's windows, NaN where none is fit for training."""
        batch = self.draw(self.step).to(self.settings.device)
        if not batch.rows:
            self.step += 1
            return math.nan
        rate = self._rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.zero_grad(set_to_none=True)
        half = self.settings.precision == "bfloat16"
        with torch.autocast(torch.device(self.settings.device).type, torch.bfloat16, enabled=half):
            loss = without_outliers(self.model.row_losses(batch)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(self.settings.averaging, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
                else:
                    self.average[name].copy_(value)
        return float(loss.detach())

    def draw(self, step: int) -> Batch:
        """The batch of that step, a function of seed and step alone."""
        settings = self.settings
        rng = np.random.default_rng(np.random.SeedSequence([settings.seed, step, 7]))
        patch, horizon = self.model.patch, self.model.native_horizon
        count = int(rng.choice([4, 6, 6, 8, 12, 16]))
        if self.model.output_patch is not None:
            horizon = min(horizon, count * self.model.output_patch)
        context = self.model.context_length
        if rng.random() < 0.15:
            context = int(rng.integers(min(max(2 * patch, 2 * FEWEST), context), context + 1))
        start = self.source.context - context
        single = self.model.window_rows == 1
        if not self.model.capabilities.multivariate or (single and rng.random() >= settings.groups):
            values = self.source.draw(settings.batch, step)[:, start:]
            past, target, usable = window_batch(values, context, horizon, settings.farthest)
            return Batch(past[usable], target[usable])
        size = int(rng.choice([2, 3, 4, 8]))
        size = size if single else self.model.window_rows
        values, ids = self.source.draw_groups(settings.batch // size, size, step)
        past, target, usable = window_batch(values[:, start:], context, horizon, settings.farthest)
        missing = torch.full_like(target, torch.nan)
        past = torch.where(usable[:, None], past, torch.full_like(past, torch.nan))
        target = torch.where(usable[:, None], target, missing)
        groups = torch.from_numpy(ids)
        if not self.model.capabilities.known_covariates:
            return Batch(past, target, group_ids=groups)
        leads = torch.from_numpy(np.arange(len(ids)) % size == 0) & (rng.random() < 0.5)
        future = torch.where(leads[:, None], target, missing)
        target = torch.where(leads[:, None], missing, target)
        return Batch(past, target, group_ids=groups, future=future, is_target=~leads)

    def _rate(self, step: int) -> float:
        """Warm-up, then constant, then linear to 0: a longer run shares all but the last part with a shorter one."""
        up = min(1.0, (step + 1) / max(1, self.settings.warmup_steps))
        down = min(1.0, (self.settings.steps - step) / max(1, self.settings.decay_steps))
        return self.settings.learning_rate * up * down

    def save(self) -> None:
        """Write the checkpoint."""
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "settings": asdict(self.settings),
            "corpus": self.corpus,
        }
        save_training(self.out / "checkpoint.safetensors", self.model, self.optimizers, facts, self.average)

    def write_model(self, dtype: torch.dtype = torch.float16) -> Path:
        """The averaged weights in the public layout, half precision on disk, with a card."""
        target = self.out / "model"
        config = self.model.config | {"pretraining_corpora": corpora(self.description)}
        threads = torch.get_num_threads()
        card = model_card(self.model, asdict(self.settings), self.description, self.seconds, threads)
        write_text(target / "MODEL_CARD.md", card)
        averaged = copy.deepcopy(self.model)
        averaged.load_state_dict(self.average)
        public = averaged.tensors_to_public()
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in public.items()}
        write_tensors(target / "model.safetensors", tensors, {"format": "pt"})
        write_text(target / "config.json", json.dumps(config, indent=2) + "\n")
        return target

    def _cut_log(self) -> None:
        """Leave out of the log what was done after the checkpoint, as it is done again."""
        path = self.out / "log.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(path, "".join(line for line in lines if _logged(line) <= self.step))

    def _log(self, loss: float) -> None:
        line = {
            "step": self.step,
            "loss": None if math.isnan(loss) else round(loss, 5),
            "rate": self._rate(self.step),
            "seconds": round(self.seconds, 1),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _logged(line: str) -> float:
    """Step of a line of the log; a line cut off by a kill counts as later than any."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


MUST_AGREE = (
    "precision",
    "batch",
    "learning_rate",
    "weight_decay",
    "optimizer",
    "averaging",
    "groups",
    "farthest",
    "seed",
    "warmup_steps",
)


def make_optimizers(model: Forecaster, settings: PretrainSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers and AdamW for the rest, or AdamW for all.

    Args:
        model: parameters of two axes under a residual branch count as matrices inside layers, tables do not.
        settings: `learning_rate` is AdamW's; Muon's update is scaled to the same root mean square.
    """
    named = list(model.named_parameters())
    branches = [m for m in model.modules() if isinstance(m, Branch)]
    maps = {id(m.weight) for branch in branches for m in branch.modules() if isinstance(m, nn.Linear)}
    inside = [p for _, p in named if id(p) in maps]
    if settings.optimizer == "adamw":
        inside = []
    chosen = {id(p) for p in inside}
    matrices = [p for _, p in named if id(p) not in chosen and p.ndim == 2]
    vectors = [p for _, p in named if id(p) not in chosen and p.ndim != 2]
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = [
        {"params": matrices, "weight_decay": decay, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]
    if inside:
        group = {"params": inside, "weight_decay": decay, "scale": 1.0}
        optimizers.append(torch.optim.Muon([group], lr=rate, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def pretrain(
    family: str, size: str, settings: PretrainSettings, out: Path, corpus: str, threads: int, progress: Progress
) -> Path:
    """Train a model of a family from scratch, or continue where the directory's checkpoint stands.

    Args:
        family: name of a family in `tsprune.models`.
        size: a preset of the family, or the path of a config.json in its public layout.
        settings: how to train.
        out: directory of the checkpoint, the log and the finished `model/`.
        corpus: folder of CSV files, or "" for simulated series alone.
        threads: CPU threads; 0 leaves the choice to torch.
        progress: told what happens.

    Returns:
        Directory of the finished model, half precision.
    """
    if threads < 0:
        raise TspruneError(f"--threads {threads} must not be negative")
    if threads:
        torch.set_num_threads(threads)
    kind = find("tsprune.models", family).FAMILY
    config = _config(Path(size), family) if size.endswith(".json") else preset(family, size)
    torch.manual_seed(settings.seed)
    model = kind.from_config(config)
    _check_possible(model, settings)
    real = Corpus.from_folder(corpus) if corpus else None
    run = Pretraining(model, out, settings, real)
    if run.resume():
        progress.say(f"continuing at step {run.step} of {settings.steps}")
    with progress.stage(
        f"pretrain {family} {size}, {model.parameter_count() / 1e6:.2f} M parameters", settings.steps
    ) as bar:
        return run.run(lambda step, loss: bar.update(step, f"loss {loss:.3f}"))


def _config(path: Path, family: str) -> dict[str, Any]:
    """A config from a file, which must be of the family."""
    config = read_config(path)
    family_of(config, family, path)
    return config


def _check_possible(model: Forecaster, settings: PretrainSettings) -> None:
    """Refuse what would fail in the middle of the training."""
    device_of(settings.device)
    if settings.groups and model.capabilities.multivariate and settings.batch < LARGEST_GROUP:
        raise TspruneError(
            f"--batch {settings.batch} cannot hold a group of {LARGEST_GROUP} related series; give "
            f"--batch {LARGEST_GROUP} or more, or --groups 0"
        )


def preset(family: str, size: str) -> dict[str, Any]:
    """A config inside the package, by family and name.

    Raises:
        TspruneError: there is none of that name; the message lists those there are.
    """
    folder = resources.files("tsprune") / "bundled" / "configs"
    known = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
    if f"{family}-{size}" not in known:
        own = [name.removeprefix(f"{family}-") for name in known if name.startswith(f"{family}-")]
        raise TspruneError(
            f"--size {size!r} is no preset of {family}; use {', '.join([*own, 'the path of a config.json'])}"
        )
    found: dict[str, Any] = json.loads((folder / f"{family}-{size}.json").read_text(encoding="utf-8"))
    return found


def mini_config(**changes: Any) -> dict[str, Any]:
    """Config of the bundled `mini`: the Chronos-2 architecture at about 3 million parameters."""
    return preset("chronos2", "mini") | changes
