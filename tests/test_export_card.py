"""The model card of an export: what it says from a run, what it says is unknown, and the licence it carries over."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

import tiny
import tsprune
from report_fixture import compared, results
from running import called
from tsprune.errors import TspruneError
from tsprune.exporting import form_of
from tsprune.exports._card import about_model, export_card
from tsprune.exports._licence import Licence, front_matter, identifier, licence_of, recognised
from tsprune.exports._lineage import Ancestor, lineage
from tsprune.models._forecaster import Forecaster
from tsprune.slimming import make_plan, slim

FACTS: dict[str, dict[str, Any]] = {
    "onnx": {
        "files": {"model.onnx": 9},
        "parity": {"cases": 3, "worst": 2e-6, "amplified": []},
        "about": {
            "levels": [0.1, 0.5, 0.9],
            "context_limit": 64,
            "input": {"rows": "every row is a series by itself"},
            "output": {"shape": ["batch", 3, 48]},
        },
    },
    "masked": {"files": {"config.json": 2}, "difference": {"float32": 1e-6, "float64": 1e-15, "windows": 4}},
    "quantised": {"files": {"config.json": 2}, "widths": {"8": {}, "4": {}}, "notes": ["8 bits: hardly moves"]},
}


def pruned() -> tuple[Forecaster, tsprune.Plan]:
    """A tiny model tuned for 48 steps without two of its heads and some channels, and its plan."""
    whole = tiny.tiny_model("chronos_bolt")
    groups = whole.unit_groups()
    heads = next(name for name, group in groups.items() if group.kind == "head" and group.units > 1)
    channels = next(name for name, group in groups.items() if group.kind == "ffn_channel")
    kept = {heads: [0], channels: list(range(3, groups[channels].units))}
    plan = make_plan(whole, kept, base_model="amazon/chronos-bolt-tiny", score="taylor", schedule="iterative")
    model = slim(whole, plan)
    model.config["tsprune_task"] = {"horizon": 48, "context": 32}
    return model, plan


def run_of(kept: Forecaster, folder: Path, plan: tsprune.Plan | None, **protocol: Any) -> Path:
    """A run directory with that model as the one that was chosen; its `model/`."""
    told = copy.deepcopy(results())
    chosen = next(c for c in told["candidates"] if c["name"] == told["chosen"])
    chosen["parameters"] = kept.parameter_count()
    told["protocol"] |= protocol
    source = tsprune.save(kept, folder / "model", plan)
    (folder / "results.json").write_text(json.dumps(told), encoding="utf-8")
    return source


def card(source: Path, form: str = "masked", name: str = "acme/load", **more: Any) -> str:
    model = tsprune.load(source)
    facts = {"format": form, "title": form_of(form).title, "horizon": 48, **FACTS[form]}
    return export_card(about_model(model, str(source), **more), form_of(form), facts, name)


def hub_data(text: str) -> Any:
    """The front matter as the hub's own library reads it."""
    return ModelCard(text).data


@pytest.mark.parametrize("form", sorted(FACTS))
def test_a_run_is_told_whole(form: str, tmp_path: Path) -> None:
    model, plan = pruned()
    text = card(run_of(model, tmp_path / "run", plan), form)
    parsed = hub_data(text)
    matter = front_matter(text)
    assert parsed.to_dict() == matter == yaml.safe_load(text.split("---\n")[1])
    again: Any = ModelCardData(**matter)
    assert again.to_dict() == matter
    assert parsed.license == "apache-2.0"
    assert parsed.base_model == "amazon/chronos-bolt-tiny"
    assert parsed.library_name == "tsprune"
    assert parsed.pipeline_tag == "time-series-forecasting"
    assert {"chronos_bolt", form, "pruned", "time-series"} <= set(parsed.tags or [])
    # Removed, data, protocol, results with intervals, use, versions.
    before, after = plan.parameters["before"], plan.parameters["after"]
    assert f"{before:,} parameters before, {after:,} after" in text
    assert "| FFN channels | 3 of " in text and "score `taylor`" in text
    assert "`load_hourly.csv`, 8 series" in text and "test before 2023-12-31 23:00:00" in text
    assert "check that you may name these data" in text
    assert "Split ratio 0.7/0.1/0.2, in time" in text and "scaler: ok, copies: ok, pretraining: unknown" in text
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    own = rows["**prune, then fine-tune**"]
    assert own[:3] == ["**0.3650**", "**0.3880**", "**0.3920**"]
    assert own[3:5] == ["**0.965**", "**0.96 to 0.97**"]
    assert rows["full fine-tuning"][6] == "reference"
    assert "tsprune 0.1.0, torch 2.13.0" in text
    wanted = {
        "onnx": "snapshot_download('acme/load') + \"/model.onnx\"",
        "quantised": "bits=4",
        "masked": "original package",
    }
    assert wanted[form] in text
    # Neither series nor columns nor paths.
    assert not any(word in text for word in ("M-104", "M-017", "load_kw", str(tmp_path)))


def test_without_results_the_card_says_what_is_unknown(tmp_path: Path) -> None:
    model, plan = pruned()
    text = card(tsprune.save(model, tmp_path / "model", plan))
    assert "Whether and how it was tuned is unknown: no results of a run lie beside the model" in text
    assert "| candidate |" not in text and "Judge it on your own series" in text
    assert "| FFN channels | 3 of " in text


def test_results_of_another_model_are_not_believed(tmp_path: Path) -> None:
    model, plan = pruned()
    source = run_of(model, tmp_path / "run", plan)
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    told["candidates"][-1]["parameters"] += 1
    (tmp_path / "run" / "results.json").write_text(json.dumps(told))
    assert "the results beside the model are not its own: they are of a model with" in card(source)
    source = run_of(model, tmp_path / "other", plan, horizon=24)
    assert "they are of a model for horizon 24, this one says 48" in card(source)


def test_results_of_another_model_do_not_give_it_a_licence(tmp_path: Path) -> None:
    model = tiny.tiny_model("chronos_bolt")
    model.config["tsprune_task"] = {"horizon": 48}
    source = run_of(model, tmp_path / "run", None, model="mini")
    assert hub_data(card(source)).license == "apache-2.0"
    path = tmp_path / "run" / "results.json"
    path.write_text(path.read_text().replace(f'"parameters": {model.parameter_count()}', '"parameters": 7'))
    assert hub_data(card(source)).license == "unknown"


def test_what_was_trained_from_scratch_owes_nothing(tmp_path: Path) -> None:
    model = tiny.tiny_model("chronos_bolt")
    model.config["tsprune_task"] = {"horizon": 48}
    source = run_of(model, tmp_path / "run", None, model="mini")
    path = tmp_path / "run" / "results.json"
    path.write_text(path.read_text().replace("prune_then_finetune", "patchtst_scratch"))
    text = card(source)
    assert "trained from scratch" in text and hub_data(text).license == "unknown"


def test_the_data_can_have_another_name(tmp_path: Path) -> None:
    model, plan = pruned()
    text = card(run_of(model, tmp_path / "run", plan), data_name="hourly load of `a` city | x")
    assert "load_hourly" not in text and "`hourly load of 'a' city / x`, 8 series" in text


def test_a_baseline_that_won_is_admitted(tmp_path: Path) -> None:
    model, plan = pruned()
    source = run_of(model, tmp_path / "run", plan)
    path = tmp_path / "run" / "results.json"
    told = json.loads(path.read_text()) | {"chosen": "seasonal_naive"}
    next(c for c in told["candidates"] if c["name"] == "seasonal_naive")["validation"]["mse"] = 0.1
    path.write_text(json.dumps(compared(told)))
    assert "Validation chose “seasonal naive”, which is no network" in card(source)


def test_an_unpruned_model_of_a_run_knows_its_base(tmp_path: Path) -> None:
    whole = tiny.tiny_model("chronos_bolt")
    base = tsprune.save(whole, tmp_path / "secret" / "base")
    (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nA card.\n")
    (base / "LICENSE").write_text("Creative Commons Attribution-NonCommercial 4.0 International Public License")
    whole.config["tsprune_task"] = {"horizon": 48}
    text = card(run_of(whole, tmp_path / "run", None, model=str(base)))
    assert hub_data(text).license == "cc-by-nc-4.0"
    assert "Not for commercial use" in text and "made from `base`" in text and "Nothing: every unit" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        ('Permission is hereby granted, free of charge, to any person ... "AS IS"', "MIT"),
        ("Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0"),
        ("Attribution 4.0 International", "CC-BY-4.0"),
        ("All rights reserved.", ""),
    ],
)
def test_texts_of_licences_are_recognised(text: str, name: str) -> None:
    assert recognised(text) == name


def place(folder: Path, **files: str) -> Ancestor:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return Ancestor(str(folder), folder)


def test_the_nearest_statement_counts_and_contradictions_count_for_nothing(tmp_path: Path) -> None:
    mute = place(tmp_path / "mute", README_md="---\nlicense: unknown\n---\n")
    other = place(tmp_path / "other", README_md="---\nlicense: other\nlicense_name: House Rules\n---\n")
    torn = place(tmp_path / "torn", README_md="---\nlicense: mit\n---\n", LICENSE="Attribution-NonCommercial 4.0")
    bundled = Ancestor("mini", None)
    assert licence_of([mute, other, bundled]).front_matter() == {"license": "other", "license_name": "house-rules"}
    assert licence_of([mute, bundled]).name == "Apache-2.0"
    found = licence_of([torn])
    assert not found.known and "README.md of torn says mit, its LICENSE is CC-BY-NC-4.0" in found.told_by
    assert found.front_matter() == {"license": "unknown"} and [p.name for p in found.texts] == ["LICENSE"]
    assert licence_of([torn], "mit").name == "mit"


def test_what_binds_is_carried_over() -> None:
    moirai = tiny.tiny_model("moirai")
    (named,) = lineage(moirai, "Salesforce/moirai-1.1-R-small")
    found = licence_of([named])
    assert found.front_matter() == {"license": "cc-by-nc-4.0"} and not found.commercial
    assert licence_of([named], "cc-by-nc-4.0") == found
    with pytest.raises(TspruneError, match="under CC-BY-NC-4.0 .* carried over; leave --license out"):
        licence_of([named], "apache-2.0")
    free = licence_of([Ancestor("mini", None)], "cc-by-nc-4.0")
    assert (free.name, free.base, free.commercial) == ("cc-by-nc-4.0", "Apache-2.0", False)
    for nothing in ("unknown", "other", " ", "a\nb"):
        with pytest.raises(TspruneError, match="names no licence"):
            licence_of([named], nothing)


def test_every_listed_licence_has_an_identifier() -> None:
    for family in ("chronos2", "moirai", "ttm", "toto", "time_moe"):
        for one in type(tiny.tiny_model(family)).checkpoints:
            matter = Licence(one.licence).front_matter()
            assert matter["license"] in ("apache-2.0", "cc-by-nc-4.0", "other"), one
    assert identifier("CC-BY-NC-4.0 (non-commercial)") == "cc-by-nc-4.0"


def test_an_edited_card_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tsprune.save(tiny.tiny_model("chronos_bolt"), tmp_path / "bolt")
    out = tmp_path / "out"
    arguments = ["export", str(source), "--out", str(out), "--format", "masked", "--horizon", "8"]
    assert called(arguments, capsys)[0] == 0
    assert "Licence: unknown: set it before publishing" in (out / "README.md").read_text()
    assert called(arguments, capsys)[0] == 0
    (out / "README.md").write_text("mine")
    code, _, said = called(arguments, capsys)
    assert code == 2 and "its README.md was edited since it was exported" in said
    assert (out / "README.md").read_text() == "mine"
