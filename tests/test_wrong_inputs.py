"""Every mistake is one line that names the file, flag or column, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from running import FAST, called, finished, listing, no_figures, wide, without_timings
from tsprune.cli import main

BASE = ["specialize", *FAST, "--model", "chronos2", "--data", "wide.csv", "--out", "out"]


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error line of a call that must be refused and leave the folder as it was."""
    before = listing(folder)
    code, out, err = called(arguments, capsys)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert out == ""
    assert len(errors) == 1 and err.splitlines()[-1] == errors[0]
    assert "Traceback" not in err
    assert listing(folder) == before
    return errors[0]


def table(change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> Callable[[Path], None]:
    """Writes the usual table to data.csv with a change."""

    def write(folder: Path) -> None:
        frame = wide()
        changed = change(frame)
        (frame if changed is None else changed).to_csv(folder / "data.csv", index=False)

    return write


def text(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "data.csv").write_text(content, encoding="utf-8")

    return write


def _one_word(frame: pd.DataFrame) -> None:
    frame["b"] = frame["b"].astype(object)
    frame.loc[7, "b"] = "broken"


def _empty(frame: pd.DataFrame) -> None:
    frame[["a", "b"]] = np.nan


DATA = {
    "missing": (lambda folder: None, "data.csv", "no such file"),
    "empty": (text(""), "data.csv", "empty"),
    "header only": (text("date,a\n"), "data.csv", "no rows"),
    "unparsable dates": (text("date,a\nfoo,1\nbar,2\nbaz,3\n"), "'date'", "--timestamp-format"),
    "a word among numbers": (table(_one_word), "'b'", "'broken' in line 9"),
    "a column of words": (table(lambda f: f.assign(b="word")), "data.csv", "column 'b' holds text"),
    "no value at all": (table(_empty), "data.csv", "no series holds a value"),
    "a ragged line": (text("date,a\n2024-01-01,1\n2024-01-02,1,2,3\n"), "data.csv", "regular table|cells"),
    "a folder": (lambda folder: (folder / "data.csv").mkdir(), "data.csv", "folder"),
    "bytes, no text": (lambda f: (f / "data.csv").write_bytes(bytes(range(256)) * 8) and None, "data.csv", "."),
    "a broken parquet": (lambda f: (f / "data.parquet").write_bytes(b"PAR1 no") and None, "data.parquet", "."),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("command", ["specialize", "predict", "evaluate"])
def test_bad_data_is_refused_by_name(name: str, command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, names, says = DATA[name]
    write(place)
    file = "data.parquet" if name == "a broken parquet" else "data.csv"
    out = ["--out", "out" if command == "specialize" else "out.file"]
    arguments = [command, "--data", file, "--horizon", "8", *out]
    arguments += ["chronos2"] if command == "predict" else ["--model", "chronos2"]
    found = refused(arguments, place, capsys)
    assert names in found
    assert re.search(says, found)


FLAGS = {
    "horizon beyond the data": (["--horizon", "500"], "--horizon 500", "longest series has 240"),
    "horizon beyond a part": (["--horizon", "100"], "horizon 100", "--horizon"),
    "context beyond the model": (["--context", "65"], "--context 65", "64"),
    "horizon zero and negative": (["--horizon", "-3"], "--horizon", "negative"),
    "horizon no number": (["--horizon", "many"], "--horizon", "integer"),
    "ratio no number": (["--ratio", "x"], "--ratio", "."),
    "ratio not finite": (["--ratio", "nan"], "--ratio", "finite"),
    "ratio too large": (["--ratio", "1.5"], "--ratio 1.5", "between 0 and 1"),
    "negative minutes": (["--minutes", "-1"], "--minutes", "negative"),
    "negative decay": (["--weight-decay", "-1"], "--weight-decay", "negative"),
    "negative search": (["--search-steps", "-1"], "--search-steps", "negative"),
    "no clip": (["--clip", "0"], "--clip", "above 0"),
    "rates no numbers": (["--learning-rates", "1e-3,fast"], "--learning-rates", "numbers"),
    "rates negative": (["--learning-rates", "-1e-3"], "--learning-rates", "positive"),
    "unknown model": (["--model", "nothing"], "'nothing'", "mini"),
    "unreachable hub id": (["--model", "some/where"], "some/where", "hf download"),
    "a file as model": (["--model", "wide.csv"], "wide.csv", "directory"),
    "unknown score": (["--score", "luck"], "--score", "'luck'.*fisher"),
    "unknown units": (["--units", "neuron"], "--units", "'neuron'.*head"),
    "unknown rank": (["--rank", "up"], "--rank", "magnitude"),
    "unknown split": (["--split", "half"], "--split", "70/10/20"),
    "unknown device": (["--device", "toaster"], "'toaster'", "not available"),
    "unknown layout": (["--layout", "round"], "--layout", "'wide'"),
    "unknown flag": (["--horizn", "8"], "--horizn", "--horizon"),
    "unknown frequency": (["--frequency", "fortnight?"], "fortnight", "."),
    "argument too many": (["extra"], "extra", "."),
    "absent value column": (["--value-columns", "z"], "--value-columns", "'z'.*date, a, b"),
    "absent known covariate": (["--known-covariates", "z"], "--known-covariates", "'z'.*date, a, b"),
    "absent past covariate": (["--past-covariates", "z"], "--past-covariates", "'z'.*date, a, b"),
    "covariate the family ignores": (
        ["--model", "chronos_bolt", "--value-columns", "a", "--known-covariates", "b"],
        "--known-covariates",
        r"chronos_bolt cannot use known covariates \(b\)",
    ),
    "past covariate the family ignores": (
        ["--model", "chronos_bolt", "--value-columns", "a", "--past-covariates", "b"],
        "--past-covariates",
        r"chronos_bolt cannot use past covariates \(b\)",
    ),
    "groups the family ignores": (["--model", "chronos_bolt", "--together"], "--together", "chronos_bolt cannot"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_bad_flag_is_refused_by_name(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, names, says = FLAGS[name]
    found = refused([*BASE, *flags], place, capsys)
    assert names in found
    assert re.search(says, found)


def test_context_beyond_the_data_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide(length=60).to_csv(place / "data.csv", index=False)
    arguments = [*BASE, "--data", "data.csv", "--horizon", "4"]
    assert "--context 60" in refused([*arguments, "--context", "60"], place, capsys)


YAML = {
    "no YAML": ("horizon: [1, 2\n", "options.yaml", "not valid YAML"),
    "a list": ("- horizon\n", "options.yaml", "expected lines"),
    "unknown key": ("horizn: 8\n", "'horizn'", "did you mean 'horizon'"),
    "another command's key": ("corpus: here\n", "'corpus'", "known:"),
    "a word for a number": ("horizon: soon\n", "--horizon", "'soon', expected a whole number"),
    "a fraction for a count": ("horizon: 7.5\n", "--horizon", "7.5, expected a whole number"),
    "a truth for a number": ("rounds: true\n", "--rounds", "True, expected a whole number"),
    "a mapping for a text": ("data: {file: x}\n", "--data", "expected text"),
    "words for numbers": ("learning_rates: [fast]\n", "--learning-rates", "expected numbers"),
    "no such choice": ("layout: round\n", "--layout", "'round', expected one of 'auto'"),
    "infinite": ("ema: .inf\n", "--ema", "finite"),
    "beyond any number": ("horizon: 99999999999999999999999\n", "--horizon", "far too large"),
    "given twice": ("horizon: 8\nrounds: 1\nhorizon: 4\n", "'horizon'", "given twice (line 3)"),
    "an empty file name": ("data: ''\n", "--data", "is empty"),
}


@pytest.mark.parametrize("name", YAML)
def test_bad_settings_file_is_refused_by_key(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, names, says = YAML[name]
    (place / "options.yaml").write_text(content, encoding="utf-8")
    arguments = ["specialize", "--model", "chronos2", "--out", "out", "--config", "options.yaml"]
    found = refused(arguments, place, capsys)
    assert names in found
    assert says in found


def test_settings_file_may_name_flags_and_be_quiet(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "options.yaml").write_text("sentinel: -9999\nquiet: true\nhorizon: 2\n", encoding="utf-8")
    code, _, err = called(["predict", "chronos2", "--data", "wide.csv", "--config", "options.yaml"], capsys)
    assert (code, err) == (0, "")


@pytest.mark.parametrize("flag", ["--data", "--out", "--model"])
@pytest.mark.parametrize("command", ["specialize", "prune", "evaluate", "predict"])
def test_empty_value_is_refused_by_flag(
    command: str, flag: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [command, ""] if (command, flag) == ("predict", "--model") else [command, flag, ""]
    assert f"{flag} is empty" in refused(arguments, place, capsys)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("Unable to allocate 7 TiB"), "out of memory (Unable to allocate 7 TiB)"),
        (MemoryError(), "out of memory (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "out of memory (Default"),
        (RuntimeError("CUDA out of memory. Tried to allocate\nmore"), "out of memory (CUDA out of memory."),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "output: Disk quota exceeded"),
    ],
)
def test_machine_that_is_too_small_is_one_line(
    error: Exception, says: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("tsprune.models.load", fail)
    assert says in refused(["predict", "chronos2", "--data", "wide.csv", "--horizon", "8"], place, capsys)


def test_defect_of_ours_keeps_its_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise RuntimeError("sizes differ")

    monkeypatch.setattr("tsprune.models.load", fail)
    with pytest.raises(RuntimeError, match="sizes differ"):
        main(["predict", "chronos2", "--data", "wide.csv", "--quiet"])


def test_missing_settings_file_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config none.yaml" in refused([*BASE, "--config", "none.yaml"], place, capsys)


def _cut(folder: Path) -> None:
    file = folder / "chronos2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _other_config(folder: Path) -> None:
    shutil.copy(folder / "chronos_bolt" / "config.json", folder / "chronos2" / "config.json")


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / "chronos2" / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return write


MODELS = {
    "cut off": (_cut, "model.safetensors", "cut off or damaged"),
    "another family's config": (_other_config, "model.safetensors", "missing.*unknown"),
    "a weight that is no number": (
        _tensors(lambda t: t[sorted(t)[0]].view(-1)[:1].fill_(np.nan)),
        "model.safetensors",
        "not finite",
    ),
    "a tensor missing": (_tensors(lambda t: t.pop(sorted(t)[0])), "model.safetensors", "1 missing"),
    "a tensor too many": (_tensors(lambda t: t.update(extra=torch.ones(2))), "model.safetensors", "1 unknown: extra"),
    "no weights": (lambda f: (f / "chronos2" / "model.safetensors").unlink(), "chronos2", "no model.safetensors"),
    "no config": (lambda f: (f / "chronos2" / "config.json").unlink(), "chronos2", "no config.json"),
    "config no JSON": (lambda f: (f / "chronos2" / "config.json").write_text("{"), "config.json", "not valid JSON"),
    "config of no family": (lambda f: (f / "chronos2" / "config.json").write_text("{}"), "config.json", "no family"),
    "plan no JSON": (lambda f: (f / "chronos2" / "plan.json").write_text("{"), "plan.json", "not valid JSON"),
    "plan of another schema": (lambda f: (f / "chronos2" / "plan.json").write_text("{}"), "plan.json", "schema"),
}


@pytest.mark.parametrize("name", MODELS)
def test_damaged_model_is_refused_by_file(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, names, says = MODELS[name]
    damage(place)
    found = refused(BASE, place, capsys)
    assert names in found
    assert re.search(says, found)


ON_OUT = (
    ["specialize", *FAST, "--model", "chronos2"],
    ["score", "--model", "chronos2"],
    ["prune", "--model", "chronos2"],
    ["finetune", "--model", "chronos2"],
    ["evaluate", "--model", "chronos2"],
    ["predict", "chronos2"],
    ["pretrain"],
)


@pytest.mark.parametrize("command", ON_OUT, ids=lambda command: str(command[0]))
@pytest.mark.parametrize(
    "out", ["wide.csv/below", "/proc/nowhere/here", "x" * 300 + "/y"], ids=["file", "proc", "long"]
)
def test_unwritable_output_is_refused_before_anything_is_read(
    command: list[str], out: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if command[0] == "pretrain" else ["--data", "missing.csv"]
    found = refused([*command, *data, "--out", out], place, capsys)
    assert "--out" in found
    assert "missing.csv" not in found


@pytest.mark.parametrize("command", [c for c in ON_OUT if c[0] in ("score", "evaluate", "predict")], ids=lambda c: c[0])
def test_directory_where_a_file_goes_is_refused(
    command: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--out chronos2 is a directory" in refused([*command, "--out", "chronos2"], place, capsys)


def test_file_where_the_run_goes_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out wide.csv" in refused([*BASE, "--out", "wide.csv"], place, capsys)


@pytest.mark.parametrize("command", ["specialize", "prune", "finetune"])
def test_foreign_files_where_the_model_goes_are_refused_early(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out" / "model").mkdir(parents=True)
    (place / "out" / "model" / "thesis.tex").write_text("x")
    found = refused([command, "--data", "missing.csv", "--out", "out"], place, capsys)
    assert "thesis.tex" in found


BUDGETS = {
    "scores alone": (["--scores", "scores.json"], "--scores needs a budget: --scores FILE --keep 0.6"),
    "two budgets": (["--keep", "0.5", "--speedup", "2"], "--keep 0.5 and --speedup 2.0 are two budgets"),
    "slower": (["--speedup", "0.5"], "--speedup 0.5 must be above 1"),
    "of nothing": (["--keep-of", "flops"], "--keep-of flops says what --keep is a share of"),
    "of what": (["--keep", "0.5", "--keep-of", "bytes"], "--keep-of 'bytes' is unknown"),
    "unknown schedule": (["--schedule", "weekly"], "--schedule: 'weekly' is not among the schedules; known: cubic"),
    "uniform layers": (["--uniform", "--units", "layer"], "--uniform takes the same share of every group"),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_when_a_budget_or_schedule_is_impossible_then_it_is_refused(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, says = BUDGETS[name]
    found = refused(["prune", "--model", "chronos2", "--data", "wide.csv", "--horizon", "8", *flags], place, capsys)
    assert says in found


SCORES = {
    "missing": (None, "0.5", "no such file"),
    "no JSON": ("{", "0.5", "not valid JSON"),
    "something else": ('{"a": 1}', "0.5", "not a file written by 'tsprune score'"),
    "a list": ("[]", "0.5", "not a file written by 'tsprune score'"),
    "odd groups": ('{"base_fingerprint": "", "groups": {"x": 3}}', "0.5", "not a file written by"),
    "of another model": ('{"base_fingerprint": "0", "base_model": "m", "groups": {}}', "0.5", "other weights"),
    "keep too much": ("{}", "1.5", "--keep 1.5"),
}


@pytest.mark.parametrize("name", SCORES)
def test_bad_scores_are_refused(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, keep, says = SCORES[name]
    if content is not None:
        (place / "s.json").write_text(content)
    flags = ["--model", "chronos2", "--data", "wide.csv", "--horizon", "8", "--scores", "s.json", "--keep", keep]
    found = refused(["prune", *flags, "--out", "out"], place, capsys)
    assert says in found
    assert "--scores s.json" in found or "--keep" in found


PREDICT = {
    "a level outside": (["--levels", "0.05,0.5"], "--levels 0.05"),
    "a level twice": (["--levels", "0.5,0.5"], "--levels"),
    "no level": (["--levels", "high"], "--levels"),
    "context beyond the model": (["--context", "65"], "--context 65"),
    "negative context": (["--context", "-1"], "--context"),
    "negative horizon": (["--horizon", "-1"], "--horizon"),
    "endless horizon": (["--horizon", "100000000000"], "--horizon 100000000000"),
    "known covariate that ends with the target": (["--value-columns", "a", "--known-covariates", "b"], "'b' lacks 8"),
    "part that evaluate has": (["--part", "test"], "--part"),
}


@pytest.mark.parametrize("name", PREDICT)
def test_impossible_forecast_is_refused(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, says = PREDICT[name]
    assert says in refused(["predict", "chronos2", "--data", "wide.csv", "--horizon", "8", *flags], place, capsys)


def test_unknown_part_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--part 'train'" in refused(["evaluate", "--part", "train"], place, capsys)


PRETRAIN = {
    "unknown family": (["--family", "prophet"], "'prophet'"),
    "unknown size": (["--size", "huge"], "--size 'huge'"),
    "missing config": (["--size", "none.json"], "none.json"),
    "config of another family": (["--size", "chronos_bolt/config.json"], "chronos_bolt"),
    "missing corpus": (["--corpus", "nowhere"], "nowhere"),
    "unknown precision": (["--precision", "float8"], "--precision"),
    "unknown device": (["--device", "toaster"], "'toaster'"),
    "batch below a group": (["--batch", "4"], "--batch 4"),
    "more decay than steps": (["--steps", "10"], "--steps 10"),
}


@pytest.mark.parametrize("name", PRETRAIN)
def test_impossible_pretraining_is_refused(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, says = PRETRAIN[name]
    assert says in refused(["pretrain", "--out", "out", *flags], place, capsys)


@pytest.mark.parametrize("command", ["specialise", "", "--verbose"])
def test_unknown_command_is_refused_in_one_line(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tsprune --help" in refused([command], place, capsys)


@pytest.fixture(scope="module")
def done(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("done") / "place"
    shutil.copytree(filled, folder)
    code, _, err = finished([*BASE, "--quiet"], folder)
    assert (code, err) == (0, "")
    return folder


RUN = {
    "prune/done.json": b"{",
    "prune/plan.json": b'{"schema": 1}',
    "prune/model/model.safetensors": b"",
    "full-finetuning/trials.json": b"[]",
    "full-finetuning/model/config.json": None,
    "test/test.json": b"{}",
}


@pytest.mark.parametrize("name", RUN)
def test_damaged_stage_is_made_again_and_said(
    name: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "place"
    shutil.copytree(done, folder)
    monkeypatch.chdir(folder)
    before = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    stage, _, file_name = name.partition("/")
    file = next((folder / "out" / "stages").glob(f"{stage}-????????????")) / file_name
    content = RUN[name]
    file.unlink() if content is None else file.write_bytes(content)
    with no_figures():
        code, _, err = called([*BASE, "--quiet"], capsys)
    assert code == 0
    assert err.startswith(f"stage {stage} is made again: {Path(*file.parts[len(folder.parts) :][:3])} is damaged")
    assert file_name in err and err.count("\n") == 1
    after = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    assert without_timings(after) == without_timings(before)


def test_run_directory_in_use_is_refused_and_left_alone(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "place"
    shutil.copytree(done, folder)
    monkeypatch.chdir(folder)
    with (folder / "out" / ".lock").open("w") as file:
        file.write("4711\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        found = refused([*BASE, "--steps", "3"], folder, capsys)
    assert "another tsprune run (pid 4711) is working in out; wait for it or choose another --out" in found


def test_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    weights = (place / "chronos2" / "model.safetensors").stat().st_size
    # Large enough for every model and text, too small for the state of a training.
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.5 * weights), hard))
    try:
        code, out, err = called([*BASE, "--quiet"], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert (code, out) == (2, "")
    assert err.startswith("error: out/stages/") and err.count("\n") == 1
    assert "cannot be written (File too large); make room" in err
    assert not [path for path in listing(place) if path.endswith(".part") or ".tmp" in path or ".lock" in path]
    with no_figures():
        assert called([*BASE, "--quiet"], capsys)[0] == 0
    assert (place / "out" / "results.json").exists()


def test_real_process_ends_with_one_error_line(place: Path) -> None:
    before = listing(place)
    code, out, err = finished([*BASE, "--data", "none.csv"], place)
    assert (code, out, err) == (2, "", "error: none.csv: no such file\n")
    assert listing(place) == before


def test_error_of_a_config_stays_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((place / "chronos2" / "config.json").read_text())
    config["chronos_config"]["input_patch_size"] = "eight\nor nine"
    (place / "chronos2" / "config.json").write_text(json.dumps(config))
    assert "'input_patch_size'" in refused(BASE, place, capsys)
