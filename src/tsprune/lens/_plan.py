"""What the lens found as a plan that a model can be cut by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsprune import lens
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import flops
from tsprune.lens import _joint as joint
from tsprune.lens._joint import Head
from tsprune.models._forecaster import Forecaster
from tsprune.plan import Plan
from tsprune.preparing import Prepared
from tsprune.slimming import closed, make_plan, minimal, slim


def check_source(model: Forecaster, source: str) -> None:
    """Refuse, before any work, a probe that does not apply to the model.

    Raises:
        TspruneError: it does not; says why.
    """
    if why := lens.find(source).refusal(model):
        other = "" if source == "what_may_go" else "; use --plan-from what_may_go"
        raise TspruneError(f"--plan-from {source}: {why}{other}")


def units_gone(found: Mapping[str, Any], source: str, percent: float) -> list[Head]:
    """Units that may go together with a loss within so many percent on the first windows.

    Args:
        found: content of `lens.json`.
        source: `heads_at` or `what_may_go`.
        percent: one of the limits that they look for.

    Returns:
        Group and number of each.
    """
    facts, limit = found["probes"][source]["facts"], f"{percent:g}"
    if source == "heads_at":
        return [(str(name), int(head)) for name, head in facts["removable"][limit]["together"]]
    return [(str(one["group"]), int(one["unit"])) for one in facts["steps"][: facts["within"][limit]]]


def plan_of(ready: Prepared, found: Mapping[str, Any], source: str, percent: float) -> Plan:
    """The plan of what may go.

    Args:
        ready: data, split and model that were looked at.
        found: content of `lens.json`.
        source: `heads_at` or `what_may_go`.
        percent: how much the loss may grow on the first windows.

    Raises:
        TspruneError: nothing may go at this limit.
    """
    model = ready.model
    gone = units_gone(found, source, percent)
    if not gone:
        raise TspruneError(
            f"nothing may go with a loss within {percent:g} % by {source}, so no plan was written; the findings are "
            "kept: raise --within, or choose another --plan-from"
        )
    kept = minimal(model, closed(model, joint.kept_without(model.unit_groups(), gone)))
    sizes = {"context": ready.split.context, "horizon": ready.horizon}
    return make_plan(
        model,
        kept,
        base_model=ready.task.model,
        base_fingerprint=ready.identity["model"],
        score=source,
        schedule=f"lens, within {percent:g} % of the loss on the windows that chose",
        data_fingerprint=ready.identity["data"],
        seed=ready.task.seed,
        flops={"before": flops(model, **sizes), "after": flops(slim(model, kept), **sizes)},
    )
