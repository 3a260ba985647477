"""The verdict: what a run found, in up to three sentences that admit defeat plainly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tsprune.candidates import PRUNED
from tsprune.report.evidence import MEASURES, Evidence, against, span
from tsprune.report.words import (
    CONTROLS,
    SAME,
    Results,
    baselines,
    candidates_by_name,
    change,
    count_text,
    human,
    metric,
    milliseconds,
    number,
    percent,
    references,
    rivals,
)

Told = Mapping[str, Evidence]
"""The chosen candidate against another one, by measure."""


def verdict(results: Results) -> str:
    """Say what validation chose and whether pruning paid.

    Args:
        results: content of results.json, schema 1. Errors may be None or NaN (said as "not measured").

    Returns:
        One line of two or three sentences: the choice and its test error against zero-shot, full fine-tuning,
        seasonal naive and the best other baseline, in percent where the comparison on the test windows shows a
        difference; its parameters and latency; what did not pay, and the warning about one
        seed. One sentence more for each leak that the guards found.

    Raises:
        TspruneError: the chosen candidate is not among the candidates.
    """
    found = candidates_by_name(results)
    chosen = str(results["chosen"])
    parts = [_errors(results, found, chosen), _costs(found, chosen)]
    if (results.get("protocol") or {}).get("latency_busy") and "ms instead of" in parts[1]:
        parts.append("other programs were running while that was timed, so the latencies are not reliable.")
    parts += _leaks(results)
    noise = "this is one seed, so differences of a few percent are within seed noise."
    admitted = admissions(results)
    parts.append(f"{'; '.join(admitted)}; {noise}" if admitted else noise)
    return " ".join(part[0].upper() + part[1:] for part in parts if part)


def _leaks(results: Results) -> list[str]:
    """A warning for each leak that the guards found."""
    words = {
        "copies": "series are copies of each other across the cut-offs, so these errors are too good to be believed.",
        "covariates": "a covariate holds the target itself, so these errors are too good to be believed.",
        "pretraining": "the pretrained model may have seen these data, so its errors may be too good.",
    }
    findings = (results.get("protocol") or {}).get("leakage") or []
    found = [str(finding.get("guard")) for finding in findings if finding.get("verdict") == "found"]
    return [words[guard] for guard in found if guard in words]


def _phrase(told: Told, reference: str) -> str:
    """For example `MSE 4.2 % and MAE 2.0 % lower than zero-shot`, of what is more than chance."""
    name = human(reference)
    sized = {m: e for m, e in told.items() if e.word in ("lower", "higher")}
    if all(e.word == "same" for e in told.values()):
        return f"{' and '.join(m.upper() for m in told)} about the same as {name}"
    if len(sized) == len(told) and len({e.word for e in sized.values()}) == 1:
        sizes = " and ".join(f"{m.upper()} {percent(e.change)}" for m, e in sized.items())
        return f"{sizes} {next(iter(sized.values())).word} than {name}"
    each = [
        f"{m.upper()} {percent(e.change)} {e.word}"
        if m in sized
        else f"{m.upper()} {'about the same' if e.word == 'same' else 'undecided'}"
        for m, e in told.items()
    ]
    return f"{' and '.join(each)} compared with {name}"


def _errors(results: Results, found: dict[str, Results], chosen: str) -> str:
    """The choice, and its test errors against the others', by what the test windows can show."""
    others = {name: against(results, name) for name in references(found) if name != chosen}
    start = f'validation chose "{human(chosen)}"'
    if all(math.isnan(metric(found[chosen], "test", m)) for m in MEASURES):
        return f"{start}, but its test error was not measured."
    if not others:
        return f"{start}; there is nothing to compare its test error with."
    shown = [_phrase(told, name) for name, told in others.items() if any(e.shown for e in told.values())]
    apart: dict[str, dict[str, Evidence]] = {"open": {}, "few": {}, "untested": {}}
    for name, told in others.items():
        if told and not any(e.shown for e in told.values()):
            headline = next(iter(told.values()))
            apart[headline.word][name] = headline
    if apart["open"]:
        shown.append(f"no difference that the test windows can show from {_each(apart['open'])}")
    parts = [f"on test it has {_listed(shown)}"] if shown else []
    if apart["few"]:
        parts.append(f"too few independent test windows to tell it from {_each(apart['few'])}")
    if apart["untested"]:
        parts.append(f"its test errors were not tested against chance: beside {_each(apart['untested'])}")
    parts += [f"not comparable with {human(name)} (not measured)" for name, told in others.items() if not told]
    return f"{start}; {'; '.join(parts)}."


def _each(group: dict[str, Evidence]) -> str:
    """For example `zero-shot (MSE ratio 0.998, 95 % interval 0.98 to 1.02) and DLinear (1.010, 0.97 to 1.04)`."""
    said, before = [], ""
    for name, evidence in group.items():
        measure = evidence.measure.upper()
        said.append(f"{human(name)} ({span(evidence, f'{measure} ratio' if measure != before else '')})")
        before = measure
    return _listed(said)


def _listed(said: Sequence[str]) -> str:
    if len(said) < 3:
        return " and ".join(said)
    return f"{', '.join(said[:-1])}, and {said[-1]}"


def _costs(found: dict[str, Results], chosen: str) -> str:
    """Parameters and latency of the chosen model against the unpruned one; empty if there is no model."""
    base_name = next((n for n in ("zero_shot", "full_finetuning") if n in found), None)
    if base_name is None:
        return ""
    base, own = found[base_name], found[chosen]
    if chosen == "seasonal_naive":
        return "it is a rule without parameters: no model is needed."
    before, after = number(base.get("parameters")), number(own.get("parameters"))
    if chosen in rivals(found):
        size = f"has {count_text(after)} parameters" if after > 0 else "keeps no parameters"
        return f"it {size}: no pretrained model is needed."
    # The score may have kept everything, too; then it is said what that cost.
    whole = after == before and chosen not in (PRUNED, "random_prune_finetune")
    if whole or chosen in ("zero_shot", "full_finetuning"):
        return f"it keeps all {count_text(after, 'its')} parameters: nothing was removed, and it is not faster."
    slow, fast = number(base.get("latency_ms")), number(own.get("latency_ms"))
    if not (before > 0 and after > 0):
        size = "its parameters were not counted"
    elif after >= before:
        size = f"it is not smaller than the unpruned model ({count_text(after)} parameters)"
    else:
        sizes = f"{count_text(after)} instead of {count_text(before)}"
        size = f"it has {factor(before / after)} fewer parameters ({sizes})"
    if not (slow > 0 and fast > 0):
        return f"{size}; its latency was not measured."
    times = f"{milliseconds(fast)} ms instead of {milliseconds(slow)} ms"
    if slow / fast >= 1.05:
        return f"{size} and forecasts {factor(slow / fast)} faster ({times})."
    speed = "is slower on this machine" if slow / fast < 0.95 else "is no faster on this machine"
    return f"{size} but {speed} ({times})."


def factor(ratio: float) -> str:
    """A ratio as `1.62x`, with fewer decimals when it is large."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def _excess(told: Told) -> str:
    """`MSE 3.1 % higher`, empty where no error is higher beyond chance; says so if another one is lower."""
    sizes = [f"{m.upper()} {percent(e.change)}" for m, e in told.items() if e.word == "higher"]
    lower = [m.upper() for m, e in told.items() if e.word == "lower"]
    mixed = f", though {lower[0]} is lower" if lower else ""
    return f"{' and '.join(sizes)} higher{mixed}" if sizes else ""


def admissions(results: Results) -> list[str]:
    """What did not pay, one clause each, lower case, no full stop; empty if nothing needs admitting."""
    found = candidates_by_name(results)
    chosen = str(results["chosen"])
    said = _on_pruning(results, found, chosen)
    if chosen == "zero_shot":
        said.append("no fine-tuning was preferred either: use the model as it came")
    if chosen == "seasonal_naive":
        said.append("no model was preferred to repeating the last season")
    elif chosen in baselines():
        said.append(f"no model was preferred to {human(chosen)}")
    compared = references(found)
    simple_ones = [name for name in compared if name in rivals(found)]
    known = {*compared, *rivals(found), PRUNED, *CONTROLS}
    for simple in (*simple_ones, "zero_shot", *(name for name in found if name not in known)):
        if simple in found and chosen != simple:
            excess = _excess(against(results, simple))
            verb = "does not clearly beat" if "though" in excess else "loses to"
            if excess:
                said.append(f"the chosen candidate {verb} {human(simple)} on test ({excess})")
    return said


def _on_pruning(results: Results, found: dict[str, Results], chosen: str) -> list[str]:
    """What to admit about pruning and about its score."""
    if PRUNED not in found:
        return ["no pruned model was among the candidates"]
    if chosen != PRUNED:
        more = _on_validation(found, chosen)
        if chosen in CONTROLS:
            return [f"choosing what to prune did not pay: validation preferred {CONTROLS[chosen]}{more}"]
        return [f"pruning did not pay: validation preferred {human(chosen)}{more}"]
    said = []
    if "full_finetuning" in found:
        excess = _excess(against(results, "full_finetuning"))
        if "though" in excess:
            said.append(f"against full fine-tuning pruning did not clearly pay in accuracy (test {excess})")
        elif excess:
            said.append(f"in accuracy pruning did not pay: on test it is worse than full fine-tuning ({excess})")
    controls = {words: against(results, name) for name, words in CONTROLS.items() if name in found}
    equal = [words for words, told in controls.items() if told and all(e.word != "lower" for e in told.values())]
    if equal:
        names = " and ".join(equal)
        said.append(f"against {names} no gain can be shown on test, so nothing here shows that the score mattered")
    return said


def _on_validation(found: dict[str, Results], chosen: str) -> str:
    """How far the pruned model was from the chosen one where the choice was made; nothing is tested there."""
    pairs = [(metric(found[PRUNED], "validation", m), metric(found[chosen], "validation", m)) for m in MEASURES]
    changes = {m: change(*pair) for m, pair in zip(MEASURES, pairs, strict=True)}
    known = {m: moved for m, moved in changes.items() if not math.isnan(moved)}
    if known and all(abs(moved) < SAME for moved in known.values()):
        return " by less than 1 %"
    more = [f"{m.upper()} {percent(moved)}" for m, moved in known.items() if moved >= SAME]
    return f" (pruned: validation {' and '.join(more)} above)" if more else ""
