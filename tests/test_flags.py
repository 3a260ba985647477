"""One definition per option: the field is the flag, the YAML key and the argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tsprune import cli
from tsprune.commands import COMMANDS
from tsprune.data.reading import ReadOptions
from tsprune.errors import TspruneError
from tsprune.flags import Chosen, command, entries, flag_of, from_file, validated
from tsprune.settings import FinetuneSettings, PretrainSettings, PruneSettings, TaskSettings, option


@dataclass(frozen=True)
class Sample:
    """A field of every kind."""

    count: int = option(3, "A whole number.")
    share: float = option(0.5, "A number.")
    name: str = option("word", "A text.")
    label: str | None = option(None, "A text or nothing.")
    loud: bool = option(False, "A switch.")
    soft: bool = option(True, "A switch that is on.")
    rates: tuple[float, ...] = option((0.1, 0.2), "Numbers.")
    columns: tuple[str, ...] = option((), "Names [in brackets].")
    kind: Literal["auto", "yes", "no"] = option("auto", "A choice.")

    def __post_init__(self) -> None:
        if self.count > 1000:
            raise TspruneError(f"--count {self.count} is too large")


def made(arguments: Sequence[str]) -> Sample:
    """The settings that a command built from `Sample` gets."""
    found: list[Chosen] = []
    app = typer.Typer()
    app.command()(command(lambda chosen, quiet: found.append(chosen), (Sample,)))
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0].make(Sample)


def write(folder: Path, **values: Any) -> str:
    path = folder / "options.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_field_has_one_flag_with_help(entry: Any) -> None:
    known = entries(entry.sections)
    assert {field.name for section in entry.sections for field in fields(section)} == set(known)
    for field, _ in known.values():
        assert len(field.metadata["help"]) > 10
        assert field.metadata["help"].endswith(".")
    flags = [flag_of(field) for field, _ in known.values()]
    assert len(set(flags)) == len(flags)
    assert all(flag.startswith("--") and flag == flag.lower() and "_" not in flag for flag in flags)


def test_a_name_means_the_same_in_every_section() -> None:
    """Sections are joined by name, so one name must not stand for two things within a command."""
    for entry in COMMANDS:
        names = [field.name for section in entry.sections for field in fields(section)]
        assert len(set(names)) == len(names), entry.name


def test_nothing_given_gives_the_defaults() -> None:
    assert made([]) == Sample()


def test_flags_set_every_kind_of_field() -> None:
    flags = ["--count", "7", "--share", "2", "--name", "x", "--label", "y", "--loud", "--no-soft"]
    flags += ["--rates", "1e-3,2", "--columns", "a", "--kind", "no"]
    assert made(flags) == Sample(7, 2.0, "x", "y", True, False, (0.001, 2.0), ("a",), "no")


@pytest.mark.parametrize(
    "flags", [["--rates", "1,2,3"], ["--rates", "1", "--rates", "2,3"], ["--rates", " 1 , 2", "--rates", "3,"]]
)
def test_lists_are_comma_separated_or_repeated(flags: list[str]) -> None:
    assert made(flags).rates == (1.0, 2.0, 3.0)


@given(
    count=st.integers(0, 1000),
    share=st.floats(-1e6, 1e6),
    name=st.text("abcxyz 0189.", min_size=1),
    loud=st.booleans(),
    rates=st.lists(st.floats(-10, 10), min_size=1),
    columns=st.lists(st.text("abc 019", min_size=1).filter(lambda text: text == text.strip()), min_size=1),
    kind=st.sampled_from(["auto", "yes", "no"]),
)
def test_file_and_flags_give_equal_settings(tmp_path_factory: pytest.TempPathFactory, **values: Any) -> None:
    flags = [f"--count={values['count']}", f"--share={values['share']!r}", f"--name={values['name']}"]
    flags += ["--loud" if values["loud"] else "--no-loud", f"--kind={values['kind']}"]
    flags += ["--rates=" + ",".join(map(repr, values["rates"])), "--columns=" + ",".join(values["columns"])]
    path = write(tmp_path_factory.mktemp("equal"), **values)
    assert made(["--config", path]) == made(flags)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("kind: yes", "kind", "yes"),
        ("kind: no", "kind", "no"),
        ("rates: 1e-4", "rates", (0.0001,)),
        ("rates: 1,2", "rates", (1.0, 2.0)),
        ("rates: [1, 2]", "rates", (1.0, 2.0)),
        ("rates: 3", "rates", (3.0,)),
        ("columns: a,b", "columns", ("a", "b")),
        ("columns: [2019, 2020]", "columns", ("2019", "2020")),
        ("columns: ['a,b']", "columns", ("a,b",)),
        ("label: 7", "label", "7"),
        ("count: '8'", "count", 8),
        ("share: 1e-3", "share", 0.001),
        ("count: null", "count", 3),
        ("label:", "label", None),
        ("", "count", 3),
    ],
)
def test_file_is_read_as_a_person_writes_it(text: str, name: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text, encoding="utf-8")
    assert getattr(made(["--config", str(path)]), name) == value


def test_keys_may_have_dashes(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("batch-size: 4\nvalidation_windows: 5\n", encoding="utf-8")
    assert from_file(path, (TaskSettings,)) == {"batch_size": 4, "validation_windows": 5}


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, count=5, share=0.25, loud=True, rates=[1, 2])
    found = made(["--config", path, "--count", "6", "--no-loud", "--rates", "9"])
    assert (found.count, found.share, found.loud, found.rates) == (6, 0.25, False, (9.0,))


def test_a_flag_that_repeats_its_default_wins_too(tmp_path: Path) -> None:
    assert made(["--config", write(tmp_path, count=5), "--count", "3"]).count == 3


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"count": "many"}, "--count is 'many', expected a whole number"),
        ({"count": 2.5}, "--count is 2.5, expected a whole number"),
        ({"count": 2000}, "--count 2000 is too large"),
        ({"share": "half"}, "--share is 'half', expected a number"),
        ({"share": math.nan}, "--share is nan, expected finite numbers"),
        ({"rates": [1.0, math.inf]}, "--rates is .*inf.*, expected finite numbers"),
        ({"rates": ["fast"]}, "--rates is 'fast', expected numbers separated by commas"),
        ({"name": 3}, "--name is 3, expected text"),
        ({"loud": "loudly"}, "--loud is 'loudly', expected true or false"),
        ({"kind": "maybe"}, "--kind is 'maybe', expected one of 'auto', 'yes', 'no'"),
    ],
)
def test_wrong_value_is_refused_by_flag(values: dict[str, Any], says: str) -> None:
    with pytest.raises(TspruneError, match=f"^{says}$"):
        validated(Sample, values)


@pytest.mark.parametrize("section", [TaskSettings, PruneSettings, FinetuneSettings, PretrainSettings, ReadOptions])
def test_defaults_of_every_section_pass_their_own_checks(section: type) -> None:
    assert validated(section, {}) == section()
    values = {field.name: field.default for field in fields(section)}
    assert validated(section, values) == section()


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], str]:
    """The help of a command at a width of the terminal."""

    def text(name: str, width: int) -> str:
        # The CLI library reads the width when it is imported.
        monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
        result = CliRunner().invoke(cli.app, [name, "--help"])
        assert result.exit_code == 0
        return result.output

    return text


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_help_of_every_command_mentions_every_option(entry: Any, helped: Callable[[str, int], str]) -> None:
    text = helped(entry.name, 160)
    for name, (field, hint) in entries(entry.sections).items():
        shown = name.upper() if name == entry.positional else flag_of(field)
        assert shown in text
        assert " ".join(field.metadata["help"].split()[:3]) in text
        if get_origin(hint) is Literal:
            assert "|".join(get_args(hint)) in text
    assert "--config" in text and "--quiet" in text


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_help_fits_a_narrow_terminal(entry: Any, helped: Callable[[str, int], str]) -> None:
    lines = helped(entry.name, 80).splitlines()
    assert max(map(len, lines)) <= 80
    # A column squeezed to a few letters would break words over lines.
    assert not any(line.strip("│ ") in ("r", "s", "e") for line in lines)


def test_help_states_defaults_and_keeps_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 140)
    app = typer.Typer()
    app.command()(command(lambda chosen, quiet: None, (Sample,)))
    text = CliRunner().invoke(app, ["--help"]).output
    assert "A whole number. Default: 3." in text
    assert "Numbers. Default: 0.1,0.2." in text
    assert "Names [in brackets]." in text


@pytest.mark.parametrize("key", ["sentinel", "sentinels", "--sentinel"])
def test_key_may_be_the_flag_or_the_field(key: str, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(f"{key}: -9999\n", encoding="utf-8")
    assert from_file(path, (ReadOptions,)) == {"sentinels": [-9999]}


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_flag_and_every_field_is_a_key(entry: Any, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    for name, (field, _) in entries(entry.sections).items():
        for key in (name, flag_of(field)[2:]):
            path.write_text(f"{key}: null\n", encoding="utf-8")
            assert from_file(path, entry.sections) == {}


@pytest.mark.parametrize(("text", "expected"), [("quiet: true", True), ("quiet: false", False), ("quiet:", False)])
def test_quiet_may_be_in_the_file(text: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text + "\ncount: 4\n", encoding="utf-8")
    heard: list[bool] = []
    app = typer.Typer()
    app.command()(command(lambda chosen, quiet: heard.append(quiet), (Sample,)))
    for flags in ([], ["--quiet"]):
        assert CliRunner().invoke(app, ["--config", str(path), *flags], catch_exceptions=False).exit_code == 0
    assert heard == [expected, True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("count: 1\nshare: 2\ncount: 3\n", r"'count' is given twice \(line 3\)"),
        ("soft: yes\nname: a\n'name': b\n", r"'name' is given twice \(line 3\)"),
        ("batch-size: 1\nbatch_size: 2\n", "'batch-size' and 'batch_size' are the same option"),
        ("quiet: maybe\n", "quiet is 'maybe', expected true or false"),
        ("name: ''\n", "--name is empty"),
        ("label: ''\n", "--label is empty"),
        ("columns: ''\n", "--columns is empty"),
        ("columns: ['']\n", "--columns is empty"),
        ("name: 2024-13-01\n", "not valid YAML"),
        ("? [a, b]\n: 3\n", "not valid YAML"),
        ("name: " + "[" * 3000, "not valid YAML"),
    ],
)
def test_wrong_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TspruneError, match=says):
        from_file(path, (Sample, TaskSettings))


def test_column_may_be_called_like_a_date(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("name: 2024-01-31\ncolumns: [2024-01-31, x]\n", encoding="utf-8")
    assert from_file(path, (Sample,)) == {"name": "2024-01-31", "columns": ["2024-01-31", "x"]}


@pytest.mark.parametrize("flags", [["--name", ""], ["--label="], ["--columns", ""], ["--config", ""]])
def test_empty_flag_is_refused(flags: list[str]) -> None:
    with pytest.raises(TspruneError, match=f"{flags[0].strip('=')} is empty"):
        made(flags)


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"count": np.int64(24)}, "count", 24),
        ({"count": np.array(24)}, "count", 24),
        ({"count": "24"}, "count", 24),
        ({"count": np.float64(24)}, "count", 24),
        ({"share": np.float32(0.5)}, "share", 0.5),
        ({"share": 2}, "share", 2.0),
        ({"rates": 0.001}, "rates", (0.001,)),
        ({"rates": 1}, "rates", (1.0,)),
        ({"rates": np.array([0.5, 1])}, "rates", (0.5, 1.0)),
        ({"rates": "0.5,1"}, "rates", (0.5, 1.0)),
        ({"columns": "head"}, "columns", ("head",)),
        ({"columns": "head, ffn"}, "columns", ("head", "ffn")),
        ({"columns": np.array(["head"])}, "columns", ("head",)),
        ({"name": Path("a") / "b"}, "name", "a/b"),
        ({"loud": np.bool_(True)}, "loud", True),
    ],
)
def test_values_of_python_are_taken_as_meant(values: dict[str, Any], field: str, expected: object) -> None:
    found = getattr(validated(Sample, values), field)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"count": 99999999999999999999999}, "--count is far too large"),
        ({"count": "-99999999999999999999999"}, "--count is far too large"),
        ({"share": -(10**400)}, "--share is far too large"),
        ({"count": None}, "--count is None, expected a whole number"),
        ({"count": np.float64(2.5)}, "--count is 2.5, expected a whole number"),
        ({"count": True}, "--count is True, expected a whole number"),
        ({"count": np.array([1, 2])}, r"--count is \[1, 2\], expected a whole number"),
        ({"share": "nan"}, "--share is nan, expected finite numbers"),
        ({"rates": "fast"}, "--rates is 'fast', expected numbers separated by commas"),
        ({"rates": None}, "--rates is None, expected numbers separated by commas"),
    ],
)
def test_wrong_value_of_python_is_refused_by_flag(values: dict[str, Any], says: str) -> None:
    with pytest.raises(TspruneError, match=f"^{says}"):
        validated(Sample, values)
