"""benchmarks/redundancy.py: the rules it applies, the intervals it gives, and pages of tiny cells."""

from __future__ import annotations

import json
import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lens_fixture import halves, study_of
from tests.tiny import tiny_batch, tiny_model
from tsprune.errors import TspruneError
from tsprune.evaluation.timeblocks import Blocks
from tsprune.lens._orders import ABLATION, FISHER, HIGH, LOW, SEEDS, random_name
from tsprune.lens.layer_sweep import thirds

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # Its scripts find each other there.

import redundancy  # noqa: E402
import redundancy_facts as facts  # noqa: E402
import redundancy_figures as figures  # noqa: E402
import redundancy_layers as layers  # noqa: E402
import redundancy_pages as pages  # noqa: E402

CURVE = st.lists(st.floats(0.5, 2), min_size=3, max_size=7).map(lambda growth: [1.0, *growth])


def test_the_published_rule_takes_the_lower_order_and_the_last_place_within_the_limit() -> None:
    curves = {LOW: [1.0, 1.2, 1.005, 1.3], HIGH: [1.0, 1.0, 1.5, 1.6]}
    assert facts.published(curves, 1.01) == (LOW, 2)
    assert facts.published({LOW: [1.0, None, 1.0], HIGH: [1.0, 1.4, 1.2]}, 1.01) == (HIGH, 0)
    assert [facts.steady(curves[order], 1.01) for order in (LOW, HIGH)] == [0, 1]


@given(CURVE, st.floats(1, 1.5))
def test_no_limit_on_the_way_never_lets_more_go(curve: list[float], limit: float) -> None:
    count = facts.steady(curve, limit)
    assert all(growth <= limit for growth in curve[: count + 1])
    assert count == len(curve) - 1 or curve[count + 1] > limit
    assert facts.published({LOW: curve, HIGH: curve}, limit)[1] >= count


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.floats(0.01, 1))
def test_those_of_the_lowest_values_are_taken(values: list[int], share: float) -> None:
    count = facts.share_of(share, len(values))
    assert 1 <= count <= len(values)
    found = facts.taken(range(len(values)), [float(value) for value in values], count)
    rest = [place for place in range(len(values)) if place not in found]
    assert len(set(found)) == count
    assert all((values[one], one) < (values[other], other) for one in found for other in rest)


def test_intervals_over_sets_are_students() -> None:
    found = facts.over_sets([0.0, 1.0, 2.0])
    reach = 4.302652729911275 / math.sqrt(3)
    assert found["mean"] == 1 and found["sets"] == 3
    assert (found["low"], found["high"]) == pytest.approx((1 - reach, 1 + reach))
    assert facts.grown([2.0, 0.5])["mean"] == pytest.approx(1)
    assert facts.over_sets([3.0])["low"] is None


@given(st.lists(st.floats(1, 3), min_size=1, max_size=13))
def test_the_middle_is_that_of_the_layer_sweep(values: list[float]) -> None:
    inside, parts = layers.middle_layers(len(values)), thirds(values)
    if parts is None:
        assert inside == []
    else:
        others = [value for at, value in enumerate(values) if at not in inside]
        assert (facts.mean([values[at] for at in inside]), facts.mean(others)) == pytest.approx(parts)


@pytest.mark.parametrize(("count", "edge"), [(4, 1.0), (7, 0.75), (8, 0.71)])
def test_random_rankings_correlate_as_tables_say(count: int, edge: float) -> None:
    """Two-sided 5 % points of Spearman's rho: 0.786 for 7 and 0.738 for 8 are the first values beyond."""
    low, high = facts.random_correlation(count)
    assert (low, high) == pytest.approx((-edge, edge), abs=0.03)


def curves(low: float, high: float) -> dict[str, list[float]]:
    """Four heads; random orders in between."""
    found = {LOW: low, HIGH: high, FISHER: 1.0, ABLATION: 1.0} | {random_name(d): 1.5 + d / 10 for d in range(SEEDS)}
    return {order: [1.0, value, value, value, 3.0] for order, value in found.items()}


def test_orders_are_compared_with_random_ones_attention_by_attention() -> None:
    """Random areas 1.5 to 1.9: mean 1.7. The ends of the curves, common to all orders, do not count."""
    cells = {"heads": {"facts": {"growth": {"a": curves(1.2, 1.8), "b": curves(1.9, 1.6)}}}}
    found = facts.orders_summary({"one": cells, "two": cells})
    rows = found["orders"]
    assert rows[LOW]["ratio"]["mean"] == pytest.approx(math.sqrt(1.2 * 1.9) / 1.7)
    assert (rows[LOW]["better"], rows[HIGH]["better"], rows[LOW]["of"]) == (2, 2, 4)
    assert rows["stable rank, either direction"]["ratio"]["mean"] == pytest.approx(math.sqrt(1.2 * 1.6) / 1.7)
    pairs = [min(a, b) / 1.7 for a in range(15, 20) for b in range(15, a)]
    expected = math.exp(np.log(np.array(pairs) / 10).mean())
    assert rows["random, the better of two"]["ratio"]["mean"] == pytest.approx(expected)
    assert found["directions"]["same direction on all sets"] == 2
    assert found["directions"]["same for two random orders"] == 2
    turned = {"heads": {"facts": {"growth": {"a": curves(1.8, 1.2), "b": curves(1.9, 1.6)}}}}
    found = facts.orders_summary({"one": cells, "two": turned})
    assert found["directions"]["same direction on all sets"] == 1 and found["directions"]["low first"] == 1


def test_the_middle_pair_is_ranked_among_all_pairs() -> None:
    growth = {"0 1": 2.0, "0 2": 1.5, "0 3": 3.0, "1 2": 1.2, "1 3": 1.1, "2 3": 1.8}
    rows = {
        "alone": [{"growth": g} for g in (2.0, 1.1, 1.1, 1.5)],
        "pairs": {k: {"growth": v} for k, v in growth.items()},
    }
    sets = {"one": {"layers": {"later": {"stack": {"both": rows}}}}}
    found = layers.layers_summary(sets)["stack"]["both"]
    assert found["middle"] == [1, 2] and found["sets where the middle matters less"] == 1
    assert found["middle over others"]["mean"] == pytest.approx(1.1 / math.sqrt(2.0 * 1.5))
    assert found["pair"]["rank"] == {"one": 2} and found["pair"]["of"] == 6
    assert found["pair"]["random"]["mean"] == pytest.approx(math.prod(growth.values()) ** (1 / 6))


def test_idle_channels_count_over_all_networks() -> None:
    table = {
        "head": ["network", "activity", "channels", "mean", "idle"],
        "rows": [["a", "", 30, 0.1, 3], ["b", "", 10, 0.1, 9]],
    }
    assert layers.idle_channels({"one": {"networks": table}})["mean"] == pytest.approx(12 / 40)


def test_models_are_averaged_within_the_sets_that_all_have() -> None:
    one = {"send": {"SEND": {"by set": {"a": 0.5, "b": 0.1, "c": -1.0}}, "first": {"by set": {"a": 0.0}}}}
    two = {"send": {"SEND": {"by set": {"b": 0.3, "a": 0.1}}}}
    found = facts.over_models({"one": one, "two": two}, "send")
    assert list(found) == ["SEND"]
    assert found["SEND"]["mean"] == pytest.approx((0.3 + 0.2) / 2) and found["SEND"]["sets"] == 2
    orders = [{"orders": {"orders": {LOW: {"by set": {"a": value}}}}} for value in (2.0, 0.5)]
    assert facts.over_models({"one": orders[0], "two": orders[1]}, "orders")[LOW]["mean"] == pytest.approx(1)


def test_what_is_missing_is_said_by_model() -> None:
    full = dict.fromkeys(pages.CELLS)
    models = {"one": {"sets": {"a": full, "b": {"heads": None}}}, "two": {"sets": {"b": full}}, "three": {"sets": {}}}
    assert pages.missing(models) == ["one on b (layers, send, cuts, idle)", "two on a", "three on a, b"]


def test_short_names_of_places() -> None:
    names = [
        "encoder.block.2.layer.1.self_attention",
        "decoder.block.0.layer.1.EncDecAttention",
        "model.layers.3.layer.0.self_attn",
    ]
    assert [figures.place_name(name) for name in names] == ["2 group", "dec 0 cross", "3"]


@pytest.fixture(scope="module")
def cells() -> dict[str, dict[str, Any]]:
    """All cells of a tiny model, measured on two halves of a batch in four blocks."""
    model = tiny_model("chronos2", num_layers=3, num_heads=3)
    first, later = halves(tiny_batch(16))
    seen = study_of(model, [first], [later], blocks=Blocks(np.arange(8), 8, 1, "origins"))
    makers = {"heads": redundancy.heads_cell, "layers": redundancy.layers_cell, "send": redundancy.send_cell,
              "cuts": redundancy.cuts_cell, "idle": redundancy.idle_cell}  # fmt: skip
    return {name: make(seen) | {"windows": redundancy.facts_of(seen)} for name, make in makers.items()}


def test_cells_hold_what_was_measured(cells: dict[str, dict[str, Any]]) -> None:
    cut = cells["cuts"]["middle"]["shares"]["0.3"]
    assert cells["cuts"]["middle"]["attentions"] == ["encoder.block.1.layer.0.self_attention/head"]
    assert cut["count"] == 1 and all(len(one["gone"]) == 1 for one in cut["orders"].values())
    ranks = [cut["orders"][f"stable rank, {end} first"]["gone"] for end in ("low", "high")]
    assert ranks[0] != ranks[1]
    for rule, one in cells["heads"]["later"].items():
        assert set(one["alone"]) == {name for name, heads in one["gone"].items() if heads}, rule
    entry = cells["layers"]["later"]["encoder.block"]["both"]["alone"][0]
    assert entry["low"] <= entry["growth"] <= entry["high"]


def test_cells_become_json_figures_and_tables(
    cells: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets with the same cells: every interval over sets has no width. Drawing from the JSON gives the same."""
    given = Namespace(windows=32, later=64, context=512, horizon=96, folder="")
    store = redundancy.Store(tmp_path / "cells.jsonl", redundancy.setup_of(given, "mini", "mini").identity())
    for name in ("ETTh1", "ETTm2"):
        for what, found in cells.items():
            store.add((what, name), found)
    page = tmp_path / "redundancy.md"
    page.write_text((ROOT / "docs" / "redundancy.md").read_text(encoding="utf-8"), encoding="utf-8")
    out = tmp_path / "redundancy.json"
    common = ["redundancy.py", "--out", str(out), "--docs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*common, "--collect", "--work", str(tmp_path)])
    redundancy.main()
    found, text = json.loads(out.read_text(encoding="utf-8")), page.read_text(encoding="utf-8")
    ratio = found["summary"]["mini"]["orders"]["orders"][LOW]["ratio"]
    assert ratio["low"] == ratio["mean"] == ratio["high"]
    assert f"| {LOW} | {pages.change(ratio)} |" in text
    assert found["models"]["mini"]["sets"]["ETTm2"]["layers"]["later"]
    assert "mini-moe" not in found["summary"]
    drawings = sorted((tmp_path / "figures").glob("*.svg"))
    assert len(drawings) == 6
    for drawing in drawings:
        assert ElementTree.fromstring(drawing.read_text(encoding="utf-8")).tag == "{http://www.w3.org/2000/svg}svg"
    monkeypatch.setattr(sys, "argv", [*common, "--draw"])
    redundancy.main()
    assert page.read_text(encoding="utf-8") == text


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(TspruneError, match="no place for 'heads'"):
        pages.filled("nothing here", {"heads": "| table |"})
