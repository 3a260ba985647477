"""The verdict: what a run found, in up to three sentences that admit defeat plainly."""

from __future__ import annotations

import math

from tsprune.candidates import PRUNED
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

_METRICS = ("mse", "mae")


def verdict(results: Results) -> str:
    """Say what validation chose and whether pruning paid.

    Args:
        results: content of results.json, schema 1. Errors may be None or NaN (said as "not measured").

    Returns:
        One line of two or three sentences: the choice and its test error against zero-shot, full fine-tuning,
        seasonal naive and the best other baseline in percent; its parameters and latency; what did not pay, and
        the warning about one seed. One sentence more for each leak that the guards found.

    Raises:
        TspruneError: the chosen candidate is not among the candidates.
    """
    found = candidates_by_name(results)
    chosen = str(results["chosen"])
    parts = [_errors(found, chosen), _costs(found, chosen)]
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


def _compare(candidate: Results, reference: Results, part: str) -> dict[str, float]:
    """Percent by which the candidate's errors lie above the reference's; only where both were measured."""
    changes = {m: change(metric(candidate, part, m), metric(reference, part, m)) for m in _METRICS}
    return {m: c for m, c in changes.items() if not math.isnan(c)}


def _sides(changes: dict[str, float]) -> tuple[bool, bool]:
    """(some error is lower, some error is higher), counting from 1 %."""
    return any(c <= -SAME for c in changes.values()), any(c >= SAME for c in changes.values())


def _phrase(changes: dict[str, float], reference: str) -> str:
    """For example `MSE 4.2 % and MAE 2.0 % lower than zero-shot`."""
    name = human(reference)
    if not changes:
        return f"not comparable with {name} (not measured)"
    lower, higher = _sides(changes)
    label = " and ".join(m.upper() for m in changes)
    if not lower and not higher:
        return f"{label} about the same as {name}"
    words = {m: "lower" if c <= -SAME else "higher" if c >= SAME else "" for m, c in changes.items()}
    if len(set(words.values())) == 1:
        sizes = " and ".join(f"{m.upper()} {percent(c)}" for m, c in changes.items())
        return f"{sizes} {next(iter(words.values()))} than {name}"
    each = [
        f"{m.upper()} {percent(c)} {words[m]}" if words[m] else f"{m.upper()} about the same"
        for m, c in changes.items()
    ]
    return f"{' and '.join(each)} compared with {name}"


def _errors(found: dict[str, Results], chosen: str) -> str:
    others = [name for name in references(found) if name != chosen]
    start = f'validation chose "{human(chosen)}"'
    if all(math.isnan(metric(found[chosen], "test", m)) for m in _METRICS):
        return f"{start}, but its test error was not measured."
    if not others:
        return f"{start}; there is nothing to compare its test error with."
    said = [_phrase(_compare(found[chosen], found[r], "test"), r) for r in others]
    listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])}, and {said[-1]}"
    return f"{start}, with test {listed}."


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


def _excess(found: dict[str, Results], name: str, reference: str, part: str) -> str:
    """`MSE 3.1 % higher`, empty where nothing is 1 % higher; says so if another error is lower."""
    changes = _compare(found[name], found[reference], part)
    sizes = [f"{m.upper()} {percent(c)}" for m, c in changes.items() if c >= SAME]
    lower = [m.upper() for m, c in changes.items() if c <= -SAME]
    mixed = f", though {lower[0]} is lower" if lower else ""
    return f"{' and '.join(sizes)} higher{mixed}" if sizes else ""


def admissions(results: Results) -> list[str]:
    """What did not pay, one clause each, lower case, no full stop; empty if nothing needs admitting."""
    found = candidates_by_name(results)
    chosen = str(results["chosen"])
    said = _on_pruning(found, chosen)
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
            excess = _excess(found, chosen, simple, "test")
            verb = "does not clearly beat" if "though" in excess else "loses to"
            if excess:
                said.append(f"the chosen candidate {verb} {human(simple)} on test ({excess})")
    return said


def _on_pruning(found: dict[str, Results], chosen: str) -> list[str]:
    """What to admit about pruning and about its score."""
    if PRUNED not in found:
        return ["no pruned model was among the candidates"]
    if chosen != PRUNED:
        excess = _excess(found, PRUNED, chosen, "validation")
        more = f" (pruned: validation {excess})" if excess else ""
        close = _compare(found[PRUNED], found[chosen], "validation")
        if close and not any(_sides(close)):
            more = " by less than 1 %"
        if chosen in CONTROLS:
            return [f"choosing what to prune did not pay: validation preferred {CONTROLS[chosen]}{more}"]
        return [f"pruning did not pay: validation preferred {human(chosen)}{more}"]
    said = []
    if "full_finetuning" in found:
        excess = _excess(found, PRUNED, "full_finetuning", "test")
        if "though" in excess:
            said.append(f"against full fine-tuning pruning did not clearly pay in accuracy (test {excess})")
        elif excess:
            said.append(f"in accuracy pruning did not pay: on test it is worse than full fine-tuning ({excess})")
    controls = {
        words: _compare(found[PRUNED], found[name], "test") for name, words in CONTROLS.items() if name in found
    }
    if equal := [words for words, changes in controls.items() if changes and not _sides(changes)[0]]:
        said.append(f"{' and '.join(equal)} did as well on test, so nothing here shows that the score mattered")
    return said
