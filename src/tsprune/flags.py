"""Settings dataclasses as command-line flags and YAML keys, so that each option is defined once."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tsprune.errors import TspruneError

Settings = TypeVar("Settings")
# Beyond it no count or seed means anything, and the libraries below fail in words of their own.
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Chosen:
    """What the user chose, by flag and by file; flags win."""

    values: Mapping[str, Any]

    def make(self, section: type[Settings]) -> Settings:
        """An instance of a settings dataclass; what was not chosen keeps its default.

        Raises:
            TspruneError: a value has the wrong type or is refused by the dataclass.
        """
        names = {entry.name for entry in fields(section)}  # type: ignore[arg-type]
        return validated(section, {name: value for name, value in self.values.items() if name in names})


def validated(section: type[Settings], values: Mapping[str, Any]) -> Settings:
    """An instance of a settings dataclass from loose values, each checked against the type of its field.

    Args:
        section: the dataclass.
        values: by field name, as they come from flags, YAML or Python: numbers may be text or of numpy, a list may be
            a single value or comma-separated text, a text may be a path.

    Raises:
        TspruneError: a value of the wrong type, too large, not finite, or refused by the dataclass; names its flag.
    """
    from pydantic import TypeAdapter, ValidationError

    known = entries((section,))
    plain = {name: _loose(value, *known[name]) if name in known else value for name, value in values.items()}
    try:
        made: Settings = TypeAdapter(section).validate_python(plain)
    except ValidationError as error:
        raise TspruneError(_first_error(error.errors()[0], section)) from None
    # Text such as "nan" is a number only now.
    for name, (entry, _) in known.items():
        _check_number(getattr(made, name), entry)
    return made


def _loose(value: Any, entry: Field[Any], hint: Any) -> Any:
    """A value of Python or YAML in the plain types that are checked next."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        value = value.tolist()  # Numbers and arrays of numpy and torch.
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    plain = _plain(hint)
    if get_origin(plain) is tuple and isinstance(value, str):
        value = _parsed([value], hint, flag_of(entry))
    elif get_origin(plain) is tuple and isinstance(value, int | float) and not isinstance(value, bool):
        value = (value,)
    if isinstance(value, bool) and plain is not bool:
        raise TspruneError(f"{flag_of(entry)} is {value!r}, expected {_words(hint)}")
    _check_number(value, entry)
    return value


def _check_number(given: Any, entry: Field[Any]) -> None:
    """Refuse numbers that are not finite or far beyond any use."""
    for value in given if isinstance(given, tuple | list) else (given,):
        if isinstance(value, float) and not math.isfinite(value):
            raise TspruneError(f"{flag_of(entry)} is {given!r}, expected finite numbers")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise TspruneError(f"{flag_of(entry)} is far too large, expected a number of at most {LARGEST}")


def _first_error(found: Mapping[str, Any], section: type) -> str:
    cause = found.get("ctx", {}).get("error")
    if isinstance(cause, TspruneError):
        return str(cause)
    if not found["loc"]:
        return str(found["msg"])
    name = str(found["loc"][0])
    entry = next(field for field in fields(section) if field.name == name)
    return f"{flag_of(entry)} is {found['input']!r}, expected {_words(get_type_hints(section)[name])}"


def _words(hint: Any) -> str:
    """A type as a person says it."""
    plain = _plain(hint)
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(map(repr, get_args(plain)))
    if get_origin(plain) is tuple:
        return {float: "numbers", int: "whole numbers"}.get(get_args(plain)[0], "names") + " separated by commas"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(plain, "text")


def flag_of(entry: Field[Any]) -> str:
    """The flag of a field: its name with dashes, or the one its metadata gives."""
    return str(entry.metadata.get("flag") or "--" + entry.name.replace("_", "-"))


def entries(sections: Sequence[type]) -> dict[str, tuple[Field[Any], Any]]:
    """Every field of the sections with its type, by name; the first section that has a name defines it."""
    found: dict[str, tuple[Field[Any], Any]] = {}
    for section in sections:
        hints = get_type_hints(section)
        for entry in fields(section):
            found.setdefault(entry.name, (entry, hints[entry.name]))
    return found


def from_file(path: Path, sections: Sequence[type]) -> dict[str, Any]:
    """Values from a YAML file by field name, with `quiet` where it is given.

    Keys are the names of the flags or of the fields, with dashes or underscores.

    Raises:
        TspruneError: the file cannot be read, a key is unknown (the nearest known one is suggested) or given twice,
            or a value is empty text or of the wrong type.
    """
    content = mapping(path, "--config")
    known = entries(sections)
    names = {_key(flag_of(entry)): name for name, (entry, _) in known.items()} | {name: name for name in known}
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, value in content.items():
        name = names.get(_key(str(key)), "quiet" if _key(str(key)) == "quiet" else "")
        if not name:
            near = difflib.get_close_matches(_key(str(key)), names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known)[:5])}, ..."
            raise TspruneError(f"--config {path}: unknown option {str(key)!r}{hint}")
        if name in keys:
            raise TspruneError(f"--config {path}: {keys[name]!r} and {str(key)!r} are the same option; keep one")
        keys[name] = str(key)
        if name == "quiet":
            if not isinstance(value, bool | None):
                raise TspruneError(f"--config {path}: quiet is {value!r}, expected true or false")
            values |= {} if value is None else {name: value}
        elif value is not None:
            values[name] = _from_yaml(value, *known[name])
    return values


def mapping(path: Path, flag: str) -> dict[Any, Any]:
    """The lines of 'option: value' of a YAML file.

    Args:
        path: of the file.
        flag: by which it was given, for messages; may be empty.

    Raises:
        TspruneError: it cannot be read, is not YAML or holds something else, or a key is given twice.
    """
    said = f"{flag} {path}".strip()
    content = _yaml(path, said)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise TspruneError(f"{said}: expected lines of 'option: value', found a {type(content).__name__}")
    return content


def _key(text: str) -> str:
    """A flag or a key of a file as the name of a field."""
    return text.removeprefix("--").replace("-", "_")


def _yaml(path: Path, said: str) -> Any:
    """The content of a YAML file; a key given twice is refused, as the first would be dropped unseen."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise TspruneError(f"{said}: {key.value!r} is given twice (line {line}); keep one")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        loader = Loader(path.read_text(encoding="utf-8"))
        return loader.get_single_data()
    except TspruneError:
        raise
    except OSError as error:
        raise TspruneError(f"{said}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TspruneError(f"{said}: not valid YAML ({' '.join(str(error).split())})") from None


def _check_empty(value: Any, entry: Field[Any]) -> None:
    """Refuse empty text: it is mostly an unset shell variable, and would silently stand for the default."""
    if value == "" or (isinstance(value, list | tuple) and value and all(part == "" for part in value)):
        raise TspruneError(f"{flag_of(entry)} is empty; give a value, or leave it out for the default")


def _from_yaml(value: Any, entry: Field[Any], hint: Any) -> Any:
    """The value as the flag would give it: a list may be comma-separated text, a bare yes or no is a word again."""
    _check_empty(value, entry)
    plain = _plain(hint)
    several = get_origin(plain) is tuple
    if several and isinstance(value, str):
        return _parsed([value], hint, flag_of(entry))
    if isinstance(value, bool) and plain is not bool:
        word = "yes" if value else "no"
        if word in get_args(plain):
            return word
        raise TspruneError(f"{flag_of(entry)} is {value!r}, expected {_words(hint)}")
    if several:
        texts = get_args(plain)[0] is str
        parts = value if isinstance(value, list) else [value]
        return [str(part) if texts and (type(part) is int or isinstance(part, date)) else part for part in parts]
    # A column may be called 2019 or 2024-01-31.
    return str(value) if plain is str and (type(value) is int or isinstance(value, date)) else value


def command(run: Callable[[Chosen, bool], None], sections: Sequence[type], positional: str = "") -> Callable[..., None]:
    """A function with one keyword per field, fit for typer, that calls `run(chosen, quiet)`.

    Args:
        run: what the command does.
        sections: settings dataclasses whose fields become flags.
        positional: names of fields that are given without a flag, in this order, separated by spaces.
    """
    import typer

    known = entries(sections)
    panels = {entry.name: _title(section) for section in reversed(sections) for entry in fields(section)}

    def body(**given: Any) -> None:
        quiet, config = bool(given.pop("quiet")), given.pop("config")
        if config == "":
            raise TspruneError("--config is empty; name a YAML file, or leave it out")
        values = {} if config is None else from_file(Path(config), sections)
        quiet = bool(values.pop("quiet", False)) or quiet
        for name, value in given.items():
            if value is not None and value != []:
                _check_empty(value, known[name][0])
                # What stands alone was split by the shell already.
                alone = name in positional.split()
                values[name] = value if alone else _parsed(value, known[name][1], flag_of(known[name][0]))
        run(Chosen(values), quiet)

    parameters = []
    for name, (entry, hint) in known.items():
        if name in positional.split():
            several = get_origin(_plain(hint)) is tuple
            metavar = name.upper().removesuffix("S") if several else name.upper()
            info: Any = typer.Argument(help=_help(entry), show_default=False, metavar=metavar)
            parameters.append(_parameter(name, _flag_type(hint) if several else str | None, info, None))
        else:
            parameters.append(_parameter(name, _flag_type(hint), _option(entry, hint, panels[name]), None))
    config_help = "YAML file with options by name; flags win."
    file = typer.Option("--config", help=config_help, metavar="TEXT", show_default=False)
    parameters.append(_parameter("config", str | None, file, None))
    silent = typer.Option("--quiet", help="Print results and errors only.", show_default=False)
    parameters.append(_parameter("quiet", bool, silent, False))
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__doc__ = run.__doc__
    return body


def _parameter(name: str, kind: Any, info: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _option(entry: Field[Any], hint: Any, panel: str) -> Any:
    import typer

    flag = flag_of(entry)
    if _plain(hint) is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    return typer.Option(flag, help=_help(entry), show_default=False, metavar=_metavar(hint), rich_help_panel=panel)


def _title(section: type) -> str:
    """First sentence of the docstring, as the heading of the section's options."""
    return (section.__doc__ or section.__name__).split(".")[0].split(";")[0]


def _help(entry: Field[Any]) -> str:
    """The help text with the default, which the text may state itself; square brackets would be taken for markup."""
    text, default = str(entry.metadata["help"]).replace("[", "\\["), entry.default
    if "Default:" in text or isinstance(default, bool) or default in ("", None, (), 0):
        return text
    shown = ",".join(str(part) for part in default) if isinstance(default, tuple) else default
    return f"{text} Default: {shown}."


def _metavar(hint: Any) -> str | None:
    plain = _plain(hint)
    if get_origin(plain) is Literal:
        return "|".join(map(str, get_args(plain)))
    if get_origin(plain) is tuple:
        return "LIST"
    return {int: "INT", float: "NUMBER", bool: None}.get(plain, "TEXT")


def _plain(hint: Any) -> Any:
    """The type without `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _flag_type(hint: Any) -> Any:
    plain = _plain(hint)
    if get_origin(plain) is tuple:
        return list[str] | None
    if plain in (int, float, bool):
        return plain | None
    return str | None


def _parsed(value: Any, hint: Any, flag: str) -> Any:
    """Lists may be repeated flags or comma-separated text."""
    plain = _plain(hint)
    if get_origin(plain) is not tuple:
        return value
    parts = [part.strip() for text in value for part in str(text).split(",") if part.strip()]
    if get_args(plain)[0] is not float:
        return tuple(parts)
    try:
        return tuple(float(part) for part in parts)
    except ValueError:
        raise TspruneError(f"{flag} is {','.join(parts)!r}, expected numbers separated by commas") from None
