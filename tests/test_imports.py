"""What is light stays light: heavy packages are imported when they are first used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import tsprune

HEAVY = ("torch", "pandas", "matplotlib", "pyarrow", "jinja2", "safetensors", "huggingface_hub", "pydantic", "yaml")


def imported(program: str) -> set[str]:
    """Packages that a fresh interpreter has imported after a program."""
    code = f"import sys, json, contextlib, io\n{program}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert imported("import tsprune") & {*HEAVY, "numpy", "typer", "click", "rich"} == set()


HELP = """
from tsprune.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main({arguments!r})
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["specialize", "--help"], ["predict", "--help"], ["bench", "latency", "--help"], ["--version"]],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    # The CLI library itself asks pydantic, where it is there, about the types of options.
    assert imported(HELP.format(arguments=arguments)) & {*HEAVY, "numpy"} <= {"pydantic"}


def test_reading_a_table_loads_no_torch() -> None:
    program = "import tsprune, pandas; tsprune.read(pandas.DataFrame({'a': range(50)}))"
    assert imported(program) & {"torch", "matplotlib", "typer"} == set()


def test_every_public_name_is_what_it_says() -> None:
    assert set(tsprune.__all__) <= set(dir(tsprune))
    for name in tsprune.__all__:
        found = getattr(tsprune, name)
        assert isinstance(found, str) or callable(found), name


def test_public_names_stay_callable_whatever_was_imported_before() -> None:
    """A module of the same name would take the place of the function once it is imported."""
    program = (
        "import pkgutil, importlib, tsprune\n"
        "for found in pkgutil.walk_packages(tsprune.__path__, 'tsprune.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)\n"
        "wrong = [n for n in tsprune.__all__ if n != '__version__' and not callable(getattr(tsprune, n))]\n"
        "assert not wrong, wrong"
    )
    assert "torch" in imported(program)


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tsprune' has no attribute 'predikt'"):
        tsprune.predikt  # noqa: B018
