"""Candidates: each goes the whole way, with equal budgets and sizes, and the three usual ones as before."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import report_fixture
import tiny
import tsprune
import tsprune.finetuning
from running import SMALL, called, no_figures, wide, without_timings
from tsprune import candidates
from tsprune.__about__ import __version__
from tsprune.budget import fit_minutes
from tsprune.candidates import _course, _scratch, itransformer_scratch, patchtst_scratch
from tsprune.candidates._candidate import Shorter
from tsprune.candidates._trainings import InMode
from tsprune.candidates._workshop import Workshop
from tsprune.data.reading import ReadOptions
from tsprune.errors import TspruneError
from tsprune.flags import Chosen, from_file
from tsprune.models import fingerprint
from tsprune.preparing import Prepared, prepare
from tsprune.progress import Progress
from tsprune.report import results_text, verdict, write_report
from tsprune.settings import RATES, CandidateSettings, FinetuneSettings, PruneSettings, TaskSettings
from tsprune.specializing import Specialist
from tsprune.stages import Run, digest
from tsprune.stagework import check_pruning

ALL = candidates.ordered(candidates.names())
SCRATCH = tuple(name for name in ALL if name.endswith("_scratch"))
TUNED = tuple(candidates.tuned(ALL))
CUT = {"random_prune_finetune": "random-prune", "magnitude_prune_finetune": "magnitude-prune"}
CUT |= {"layer_drop_finetune": "layer-drop"}


@pytest.fixture(scope="module", autouse=True)
def short_training() -> Any:
    """PatchTST from scratch trains six epochs: its hundred have nothing more to show."""
    one = patchtst_scratch.CANDIDATE
    published: Any = one.training
    brief = replace(published, recipe=lambda ready, small: replace(published.recipe(ready, small), epochs=6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patchtst_scratch, "CANDIDATE", replace(one, training=brief))
        yield


def run(out: Path, chosen: tuple[str, ...] = ALL, **changes: Any) -> Specialist:
    """A short run on two series and the tiny Chronos-2."""
    settings = SMALL | {"together": True, "candidates": chosen} | changes
    with no_figures():
        return tsprune.specialize(tiny.tiny_model("chronos2"), tsprune.read(wide()), out=out, **settings)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Specialist:
    return run(tmp_path_factory.mktemp("candidates") / "all")


def ready(*, length: int = 240, **changes: Any) -> Prepared:
    """A prepared task on two series."""
    options = {"horizon": 8, "validation_windows": 16} | changes
    panel = tsprune.read(wide(length=length), options.pop("options", None))
    return prepare(TaskSettings(**options), panel=panel, model=tiny.tiny_model("chronos2"))


def folder(found: Specialist, stage: str) -> Path:
    (one,) = (found.directory / "stages").glob(f"{stage}-????????????")
    return one


def entry(found: Specialist, name: str) -> dict[str, Any]:
    return next(dict(one) for one in found.results["candidates"] if one["name"] == name)


@pytest.mark.parametrize("name", ALL)
def test_candidate_goes_the_whole_way(name: str, found: Specialist) -> None:
    assert candidates.find(name).name == name
    own = entry(found, name)
    assert all(math.isfinite(own[part][measure]) for part in ("validation", "test") for measure in ("mse", "mae"))
    stage = folder(found, name.replace("_", "-"))
    model = tsprune.load(stage / "model")
    assert model.parameter_count() == own["parameters"]
    assert model.task["horizon"] == 8
    assert not (stage / "training").exists()
    told = found.results["trained"][name]
    assert told["start"] and told["training"] and told["budget"]
    assert set(found.results["search"][name][0]) == {"learning_rate", "steps", "best_step", "validation_loss"}


def test_the_table_lists_the_dense_one_first_and_the_pruned_one_last(found: Specialist) -> None:
    listed = [one["name"] for one in found.results["candidates"]]
    assert listed == ["seasonal_naive", "zero_shot", *ALL]
    assert ALL[0] == "full_finetuning" and ALL[-2:] == ("random_prune_finetune", "prune_then_finetune")


def test_tuned_candidates_get_as_many_trials_and_steps(found: Specialist) -> None:
    search = found.results["search"]
    assert {tuple(trial["steps"] for trial in search[name]) for name in TUNED} == {(2, 2, 2, 4)}
    assert {found.results["trained"][name]["budget"] for name in TUNED} == {
        "3 learning rates of 2 steps each, then 4 steps of 8 windows at most"
    }
    for name in ("head_only", "lora"):
        assert found.results["trained"][name]["learning_rates"] == list(RATES["head"])


@pytest.mark.parametrize("name", SCRATCH)
def test_network_from_scratch_has_its_own_budget_and_the_report_says_so(name: str, found: Specialist) -> None:
    (trial,) = found.results["search"][name]
    assert trial["learning_rate"] == 1e-4
    assert "published budget, not that of the tuned candidates" in entry(found, name)["notes"]
    # What it is trained and chosen on is the error of the table.
    assert trial["validation_loss"] == pytest.approx(entry(found, name)["validation"]["mse"], rel=1e-5)
    assert tsprune.load(folder(found, name.replace("_", "-")) / "model").pretraining_corpora == ("the DataFrame",)


@pytest.mark.parametrize("name", CUT)
def test_cut_model_is_as_small_as_the_pruned_one(name: str, found: Specialist) -> None:
    goal = entry(found, "prune_then_finetune")["parameters"]
    kinds = ("layer",) if name == "layer_drop_finetune" else ("head", "ffn_channel")
    groups = tiny.tiny_model("chronos2").unit_groups().values()
    largest = max(int(group.costs.max()) for group in groups if group.kind in kinds)
    assert goal - largest < entry(found, name)["parameters"] <= goal
    plan = tsprune.Plan.read(folder(found, CUT[name]) / "plan.json")
    assert {group.rpartition("/")[2] for group, kept in plan.kept.items() if name == "layer_drop_finetune"} <= {"layer"}
    assert plan.parameters["after"] == entry(found, name)["parameters"]


def test_head_only_changes_the_head_and_nothing_else(found: Specialist) -> None:
    before = tsprune.load(folder(found, "adapt") / "model")
    after = tsprune.load(folder(found, "head-only") / "model").state_dict()
    changed = {name for name, value in before.state_dict().items() if not torch.equal(value, after[name])}
    assert changed and all(name.startswith(before.head_paths) for name in changed)


def test_adapters_are_merged_into_the_layers(found: Specialist) -> None:
    before = tsprune.load(folder(found, "adapt") / "model")
    after = tsprune.load(folder(found, "lora") / "model").state_dict()
    assert after.keys() == before.state_dict().keys()
    changed = {name for name, value in before.state_dict().items() if not torch.equal(value, after[name])}
    assert changed and not any(name.startswith(before.head_paths) for name in changed)


def test_run_that_dies_again_and_again_ends_with_the_same_results(
    tmp_path: Path, found: Specialist, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: list[str] = []

    def dying(module: Any, every: int) -> None:
        save, count = module.save_training, [0]

        def saved(*arguments: Any) -> None:
            save(*arguments)
            count[0] += 1
            if not count[0] % every:
                deaths.append(module.__name__)
                raise KeyboardInterrupt

        monkeypatch.setattr(module, "save_training", saved)

    # In the middle of both trainings from scratch, and after single validations of those that are tuned.
    dying(_course, 5)
    dying(tsprune.finetuning, 23)
    again = None
    while again is None:
        with contextlib.suppress(KeyboardInterrupt):
            again = run(tmp_path / "dying")
    assert len(deaths) >= 4 and len(set(deaths)) == 2
    assert without_timings(again.results) == without_timings(found.results)
    assert fingerprint(again.model) == fingerprint(found.model)


def test_the_usual_candidates_keep_the_stages_of_runs_before_there_were_others(tmp_path: Path) -> None:
    with no_figures():
        data, model = tsprune.read(wide()), tiny.tiny_model("chronos2")
        usual = tsprune.specialize(model, data, out=tmp_path / "usual", **SMALL)
    assert "trained" not in usual.results
    task = {name: value for name, value in SMALL.items() if name in ("horizon", "validation_windows")}
    before = prepare(TaskSettings(**task), panel=data, model=model)
    base = {"tsprune": __version__, **before.identity}
    small = {name: value for name, value in SMALL.items() if name not in task}
    tuning = FinetuneSettings(**{n: v for n, v in small.items() if n in FinetuneSettings.__dataclass_fields__})
    pruning = PruneSettings(**{n: v for n, v in small.items() if n in PruneSettings.__dataclass_fields__})
    pruning = check_pruning(pruning, model)
    adapt = folder(usual, "adapt").name
    goal = tsprune.Plan.read(usual.directory / "plan.json").parameters["after"]
    cut = {"parameters": goal, "units": pruning.units, "repair": True, "prune_windows": 16, "from": adapt}

    def tuned(name: str, stage: str) -> dict[str, Any]:
        return {**base, **tuning.inputs(), "candidate": name, "from": fingerprint(model_in(usual, stage))}

    models = {name: fingerprint(model_in(usual, name.replace("_", "-"))) for name in candidates.DEFAULT}
    expected = {
        "adapt": {**base, "steps": 2, "rate": 3e-4, "tuning": "full", "dropout": None},
        "prune": {**base, **asdict(pruning), "from": adapt},
        "random-prune": {**base, **cut},
        "full-finetuning": tuned("full_finetuning", "adapt"),
        "random-prune-finetune": tuned("random_prune_finetune", "random-prune"),
        "prune-then-finetune": tuned("prune_then_finetune", "prune"),
        "validate": {**base, "models": models},
    }
    test = {"chosen": usual.results["chosen"], "test_windows": 20000, "latency_batch": 1, "comparison": 1}
    expected["test"] = expected["validate"] | test
    assert list(usual.results["timings"]) == list(expected)
    assert {one.name for one in (usual.directory / "stages").iterdir()} == {
        f"{stage}-{digest(inputs)}" for stage, inputs in expected.items()
    }


def model_in(found: Specialist, stage: str) -> Any:
    (one,) = (found.directory / "stages").glob(f"{stage}-????????????")
    return tsprune.load(one / "model")


def test_names_are_put_in_one_order_and_may_have_dashes(tmp_path: Path) -> None:
    given = ("prune-then-finetune", "lora", "full_finetuning", "lora")
    chosen = CandidateSettings(given).candidates
    assert chosen == ("full_finetuning", "lora", "prune_then_finetune")
    assert CandidateSettings().candidates == candidates.DEFAULT
    (tmp_path / "o.yaml").write_text(yaml.safe_dump({"candidates": list(given)}))
    assert Chosen(from_file(tmp_path / "o.yaml", (CandidateSettings,))).make(CandidateSettings).candidates == chosen


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ("prune_then_finetune,luck", r"--candidates: 'luck' is not among the candidates; known: .*lora.*patchtst_scr"),
        ("lora,full_finetuning", "--candidates full_finetuning,lora: prune_then_finetune is missing.*; add it"),
    ],
)
def test_impossible_lists_are_refused_before_any_work(
    chosen: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says = says.replace("; add it", "; add prune_then_finetune")
    with pytest.raises(TspruneError, match=says):
        run(tmp_path / "out", tuple(chosen.split(",")))
    code, out, err = called(["specialize", "--candidates", chosen, "--out", str(tmp_path / "out")], capsys)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "task", "says"),
    [
        ("itransformer_scratch", {}, "the 2 series of this run are forecast each by itself; add --together"),
        ("patchtst_scratch", {"context": 16}, "patches are 16 steps long and the context is 16; give a --context of"),
        (
            "patchtst_scratch",
            {"options": ReadOptions(value_columns=("a",), past_covariates=("b",))},
            r"family patchtst cannot use --past-covariates \(b\)",
        ),
        (
            "itransformer_scratch",
            {"options": ReadOptions(value_columns=("a",), known_covariates=("b",))},
            r"family itransformer cannot use --known-covariates \(b\)",
        ),
    ],
)
def test_data_that_a_network_cannot_have_are_refused(name: str, task: dict[str, Any], says: str) -> None:
    chosen = CandidateSettings((name, "prune_then_finetune")).candidates
    with pytest.raises(TspruneError, match=f"--candidates {name}: .*{says}"):
        candidates.check(chosen, PruneSettings(), FinetuneSettings(), ready(**task))


def test_model_without_layers_or_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ready()
    monkeypatch.setattr(type(given.model), "head_paths", ())
    with pytest.raises(
        TspruneError,
        match="--candidates head_only: family chronos2 does not say which part is its forecast head; leave",
    ):
        candidates.check(("head_only",), PruneSettings(), FinetuneSettings(), given)
    monkeypatch.setattr(type(given.model), "unit_groups", lambda model: {})
    with pytest.raises(TspruneError, match="--candidates layer_drop_finetune: removes units of kind layer"):
        candidates.check(("layer_drop_finetune",), PruneSettings(), FinetuneSettings(), given)


def test_missing_package_and_doubled_modes_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    for mode, name in (("head", "head_only"), ("lora", "lora")):
        with pytest.raises(TspruneError, match=f"--candidates {name}: under --tuning {mode} full_finetuning is tuned"):
            run(tmp_path / "out", (name, "prune_then_finetune"), tuning=mode)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else there(name, *rest))
    with pytest.raises(
        TspruneError, match=r"--candidates lora needs the package peft.*pip install 'tsprune\[lora\]', or leave"
    ):
        run(tmp_path / "out", ("lora", "prune_then_finetune"))
    assert list(tmp_path.iterdir()) == []


def test_rates_that_were_given_are_scaled_to_the_mode() -> None:
    given = FinetuneSettings(learning_rates=(1e-5, 3e-4))
    assert InMode("lora").settings(given).rates == (1e-4, 3e-3)
    assert InMode("head").settings(replace(given, tuning="lora")).rates == given.rates
    assert InMode("head").settings(FinetuneSettings()).rates == RATES["head"]


def test_more_candidates_share_a_time_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsprune.budget._seconds_per_step", lambda ready, tuning: 0.01)
    one, quiet = ready(), Progress(quiet=True)
    three, six = (
        fit_minutes(1, one, PruneSettings(), FinetuneSettings(), Run(tmp_path), quiet, count).steps for count in (3, 6)
    )
    assert six == pytest.approx(three / 2, abs=1)


def test_published_sizes_follow_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ready(together=True)
    small = patchtst_scratch.recipe(given)
    monkeypatch.setattr(patchtst_scratch, "LARGE", 100)
    large = patchtst_scratch.recipe(given)
    assert [(r.config["d_model"], r.config["ffn_dim"], r.config["ff_dropout"]) for r in (small, large)] == [
        (16, 128, 0.3),
        (128, 256, 0.2),
    ]
    assert (small.batch, small.epochs, small.patience, large.patience) == (128, 100, 100, 20)
    narrow = itransformer_scratch.recipe(given)
    monkeypatch.setattr(itransformer_scratch, "MANY", 2)
    assert [narrow.config["d_model"], itransformer_scratch.recipe(given).config["d_model"]] == [128, 512]
    assert (narrow.batch, narrow.epochs, narrow.patience, narrow.rate) == (32, 10, 3, 1e-4)
    assert narrow.config["seq_len"] == given.split.context and narrow.config["pred_len"] == given.horizon


def test_scratch_training_is_cut_short_only_where_it_would_be_longer(tmp_path: Path) -> None:
    one = ready(length=600)
    published: Any = patchtst_scratch.CANDIDATE.training
    whole = published.recipe(one, True)
    _, per_epoch = _scratch.portion(one, whole)

    def recipe(steps: int) -> _scratch.Recipe:
        pruning, tuning = check_pruning(PruneSettings(), one.model), FinetuneSettings()
        shorter = Shorter(steps, small=True)
        shop = Workshop(one, pruning, tuning, Run(tmp_path), {}, Progress(quiet=True), shorter)
        return published.shortened(shop)

    assert recipe(0) == recipe(whole.epochs * per_epoch) == whole
    short = recipe(2 * per_epoch + 1)
    assert (short.rate, short.decay) == (whole.rate * 10, "one cycle")
    course = _course.Course(one, "patchtst", short, tmp_path / "training")
    taken: list[float] = []
    step = course.optimizer.step
    course.optimizer.step = lambda *a: (taken.append(course.optimizer.param_groups[0]["lr"]), step())[1]  # type: ignore
    with Progress(quiet=True).stage("train", course.steps) as bar:
        trial = course.run(bar)
    assert len(taken) == trial.steps == 2 * per_epoch + 1
    assert max(taken) <= short.rate and taken[-1] < short.rate / 3
    assert f"cut short to {2 * per_epoch + 1} steps" in course.facts()["budget"]


def test_rates_fall_as_published() -> None:
    assert [_scratch.later_tenths(1.0, epoch, 0) for epoch in (0, 3, 4, 5)] == pytest.approx([1, 1, 0.9, 0.81])
    assert [_scratch.halving(1.0, epoch, 0) for epoch in (0, 1, 2, 3)] == [1, 1, 0.5, 0.25]
    cycle = [_scratch.one_cycle(1.0, 0, share) for share in (0, 0.2, 0.4, 0.7, 1)]
    assert cycle == pytest.approx([0.04, 0.52, 1, 0.5, 4e-6], abs=1e-5)


def test_series_apart_fill_batches_of_as_many_windows(tmp_path: Path) -> None:
    one = ready(length=1600)
    recipe = replace(patchtst_scratch.recipe(one), epochs=1, batch=16)
    course = _course.Course(one, "patchtst", recipe, tmp_path)
    assert (course.rows, course.per_epoch) == (32, len(one.train) // 32)
    before = {name: value.clone() for name, value in course.model.state_dict().items()}
    same = _course.Course(one, "patchtst", recipe, tmp_path).model.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in before.items())


def test_error_that_is_never_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ready()
    recipe = replace(patchtst_scratch.recipe(one), epochs=1, rate=math.inf)
    with pytest.raises(TspruneError, match="never gave a finite validation error"):
        _course.train_to(one, "patchtst", recipe, tmp_path, Progress(quiet=True), "train")


def reported(*extra: tuple[str, float]) -> dict[str, Any]:
    """The made-up run of the report's tests with further candidates and their test MSE."""
    results = report_fixture.results()
    for name, error in extra:
        made = dict(next(one for one in results["candidates"] if one["name"] == "full_finetuning"))
        made |= {"name": name, "test": dict.fromkeys(("mse", "mae", "mase", "wql"), error), "parameters": 43_000}
        results["candidates"].append(made)
        results["search"][name] = [{"learning_rate": 1e-4, "steps": 9, "best_step": 3, "validation_loss": 0.4}]
        results.setdefault("trained", {})[name] = {"start": "fresh weights", "training": "t", "budget": "b"}
    return report_fixture.compared(results)


def test_verdict_admits_better_rivals_of_any_kind() -> None:
    said = verdict(reported(("patchtst_scratch", 0.3), ("lora", 0.35), ("magnitude_prune_finetune", 0.38)))
    assert "the chosen candidate loses to PatchTST from scratch on test" in said
    assert "the chosen candidate loses to LoRA on test" in said
    assert "gainst pruning by magnitude no gain can be shown on test" in said
    for name, words in (
        ("patchtst_scratch", "It has 43.0 k parameters: no pretrained model is needed."),
        ("magnitude_prune_finetune", "preferred pruning by magnitude"),
        ("layer_drop_finetune", "preferred dropping whole layers"),
    ):
        assert words in verdict(reported((name, 0.3)) | {"chosen": name})
    whole = reported(("lora", 0.3)) | {"chosen": "lora"}
    whole["candidates"][-1]["parameters"] = whole["candidates"][1]["parameters"]
    assert "It keeps all 8.65 M parameters: nothing was removed" in verdict(whole)


def test_report_shows_every_candidate_and_whose_budget_is_its_own(tmp_path: Path) -> None:
    results = reported(("patchtst_scratch", 0.3), ("head_only", 0.35))
    page = write_report(tmp_path / "r.html", results, report_fixture.plan()).read_text(encoding="utf-8")
    for words in ("PatchTST from scratch", "fine-tuning the head only", "fresh weights; t; b.", "their own budget"):
        assert words in page
    assert "PatchTST from scratch" in results_text(results, 100)
    usual = write_report(tmp_path / "u.html", report_fixture.results(), report_fixture.plan())
    assert "their own budget" not in usual.read_text(encoding="utf-8")
