"""The model card of an export: what is known of the model, and what is not, as Markdown for the hub and for people."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from tsprune.__about__ import __version__
from tsprune.errors import TspruneError
from tsprune.exports._cardrun import data_section, protocol_section, results_section, tuning_lines
from tsprune.exports._licence import Licence, licence_of
from tsprune.exports._lineage import Ancestor, lineage
from tsprune.exports._markdown import code, table
from tsprune.exports._runfacts import RunFacts, run_facts
from tsprune.models._fresh import without_memory
from tsprune.models._loading import whole_plan
from tsprune.models._weightfiles import PLAN
from tsprune.plan import Plan
from tsprune.report.removal import KINDS

if TYPE_CHECKING:
    from tsprune.exports._export import Export
    from tsprune.models._forecaster import Forecaster

TAGS = ("time-series", "forecasting", "tsprune")


@dataclass(frozen=True)
class About:
    """What is known of a model before it is exported.

    Args:
        model: the model.
        ancestors: where its weights came from, itself first.
        licence: of its weights.
        run: the run that made it, None where there is none or its results are of another model.
        unknown: why there are no results, for people; "" where there are.
        data_name: what the data are called instead of their file's name; "" for that.
    """

    model: Forecaster
    ancestors: tuple[Ancestor, ...]
    licence: Licence
    run: RunFacts | None
    unknown: str
    data_name: str = ""

    @property
    def base_model(self) -> str:
        """Hub id of the nearest model that is on the hub, or ""."""
        return next((one.hub_id for one in self.ancestors if one.hub_id), "")

    @property
    def named_data(self) -> str:
        """What the card calls the data; "" where it knows of none."""
        return (self.data_name or str(self.run.protocol.get("data") or "")) if self.run else ""


def about_model(model: Forecaster, source: str, *, licence: str = "", base: str = "", data_name: str = "") -> About:
    """Everything that the card says of a model, from its directory and the run that it lies in.

    Args:
        model: as it was loaded.
        source: directory or name that it was loaded from.
        licence: name of the licence where nobody says it, see `licence_of`.
        base: directory of the unpruned model, where the user names it.
        data_name: see `About`.

    Raises:
        TspruneError: a licence that cannot be given, or damaged results beside the model.
    """
    ancestors = lineage(model, source)
    if base and Path(base).is_dir() and all(one.directory != Path(base) for one in ancestors):
        ancestors = (*ancestors, Ancestor(base, Path(base)))
    run, unknown = run_facts(source), "no results of a run lie beside the model"
    if run is not None and (reason := run.other_than(model)):
        run, unknown = None, f"the results beside the model are not its own: {reason}"
    if data_name and run is None:
        raise TspruneError(f"--data-name {data_name}: {unknown}, so the card speaks of no data; leave it out")
    return About(model, ancestors, licence_of(ancestors, licence), run, "" if run else unknown, data_name)


def export_card(about: About, kind: Export, facts: Mapping[str, Any], name: str) -> str:
    """The card.

    Args:
        about: of the model.
        kind: the form it was written in; says how it is used.
        facts: what `export.json` holds.
        name: what the model is called: `owner/name` on the hub, else the name of its directory.
    """
    sections = [
        ("", _opening(about, kind, facts)),
        ("Base model and licence", _origin_section(about)),
        ("What was removed", _removed_section(about.model, about.ancestors[0])),
        ("Data", data_section(about.run, about.named_data, about.unknown)),
        ("Protocol", protocol_section(about.run)),
        ("Results", results_section(about.run, str(facts["title"]))),
        ("This form", _form_section(facts)),
        ("How to use it", kind.usage(facts, name)),
        ("Versions", _versions(about.run)),
    ]
    body = "\n\n".join((f"## {head}\n\n" if head else "") + text.strip() for head, text in sections if text.strip())
    return f"---\n{_front_matter(about, facts)}---\n\n# {code(name, bare=True)}\n\n{body}\n"


def _front_matter(about: About, facts: Mapping[str, Any]) -> str:
    known: dict[str, Any] = dict(about.licence.front_matter())
    if about.base_model:
        known["base_model"] = about.base_model
    pruned = ["pruned"] if about.model.kept else []
    known |= {
        "library_name": "tsprune",
        "pipeline_tag": "time-series-forecasting",
        "tags": [*TAGS, about.model.family, str(facts["format"]), *pruned],
    }
    return str(yaml.safe_dump(known, sort_keys=False, allow_unicode=True))


def _opening(about: About, kind: Export, facts: Mapping[str, Any]) -> str:
    model = about.model
    base = about.ancestors[-1]
    made = "in the form" if len(about.ancestors) == 1 else f"made from {code(base.name)} by tsprune, in the form"
    spread = f"{len(model.levels)} quantile levels" if len(model.levels) > 1 else "single values, no spread"
    context = int(model.task.get("context") or model.context_length)
    lines = [
        f"A time-series forecaster of family `{model.family}` with {model.parameter_count():,} parameters, {made} "
        f"“{kind.title}”.",
        "",
        f"- Forecasts {facts['horizon']} steps from up to {context} steps of context; {spread}.",
        *(f"- {line}" for line in tuning_lines(about.run, base.name, about.unknown)),
    ]
    return "\n".join(lines)


def _origin_section(about: About) -> str:
    licence = about.licence
    steps = [code(one.name) for one in about.ancestors]
    lines = [f"- Weights: {steps[0]}" + "".join(f", made from {step}" for step in steps[1:])]
    if about.run is not None and not about.run.base:
        lines = ["- Weights: trained from scratch; no pretrained weights are in them"]
    if licence.known:
        lines.append(f"- Licence: {licence.name}, according to {licence.told_by}")
        if licence.base:
            lines.append(f"- The weights it was made from are under {licence.base}, whose terms still hold for them")
        if not licence.commercial:
            lines.append("- **Not for commercial use**: the licence of the weights is carried over to this model")
    else:
        vain = f" ({licence.told_by})" if licence.told_by else ""
        lines.append(f"- Licence: unknown: set it before publishing{vain}")
    if licence.texts:
        lines.append(f"- Texts that go with the weights: {', '.join(code(path.name) for path in licence.texts)}")
    return "\n".join(lines)


def _removed_section(model: Forecaster, own: Ancestor) -> str:
    """Units by kind, and parameters before and after."""
    if not model.kept and not model.folded:
        return "Nothing: every unit of the base is in it."
    path = own.file(PLAN)
    plan = whole_plan(model, None if path is None else Plan.read(path))
    with without_memory():
        whole = type(model).from_config(model.config).unit_groups()
    rows = []
    for kind, words in KINDS.items():
        gone = {name: g.units - len(g.kept) for name, g in plan.groups.items() if g.kind == kind}
        if any(gone.values()):
            total = sum(group.units for group in whole.values() if group.kind == kind)
            rows.append([words, f"{sum(gone.values()):,} of {total:,}", str(sum(n > 0 for n in gone.values()))])
    before, after = plan.parameters["before"], plan.parameters["after"]
    how = (
        f" Units were ranked by the score `{plan.score}` and left by the schedule `{plan.schedule}`."
        if plan.score
        else ""
    )
    lines = [f"{before:,} parameters before, {after:,} after ({after / before:.1%}).{how}"]
    if rows:
        lines += ["", *table(["units", "removed", "groups"], rows), ""]
        lines.append("Units inside branches and layers that left as a whole are not counted again.")
    if plan.folded:
        lines += ["", f"{len(plan.folded)} attentions in which every query has one key became one linear map each."]
    return "\n".join(lines)


def _form_section(facts: Mapping[str, Any]) -> str:
    """What was written, and what its check found."""
    lines = table(["file", "bytes"], [[code(name), f"{size:,}"] for name, size in facts["files"].items()])
    found: Sequence[str] = [str(note) for note in facts.get("notes", ())]
    if isinstance(parity := facts.get("parity"), Mapping) and "worst" in parity:
        found = [
            f"Compared with the model {parity['cases']} times before it was handed over: forecasts differ by at most "
            f"{parity['worst']:.1e} of their standard deviation"
            + (f", {len(amplified)} more are told in `export.json`" if (amplified := parity.get("amplified")) else ""),
            *found,
        ]
    if isinstance(difference := facts.get("difference"), Mapping):
        found = [
            f"Forecasts differ from the model's by at most {difference['float32']:.1e} of their standard deviation in "
            f"float32 and {difference['float64']:.1e} in float64, on {difference['windows']} windows",
            *found,
        ]
    return "\n".join([*lines, "", *(f"- {line}" for line in found)])


def _versions(run: RunFacts | None) -> str:
    lines = [f"- Exported by tsprune {__version__}, torch {torch.__version__}, Python {platform.python_version()}"]
    if run is not None and isinstance(told := run.results.get("versions"), Mapping):
        lines.append(f"- Tuned and judged by {', '.join(f'{name} {version}' for name, version in told.items())}")
    return "\n".join(lines)
