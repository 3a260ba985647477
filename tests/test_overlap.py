"""Whether the data may have been in the pretraining corpus: yes, no and unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tsprune
from tsprune import registry
from tsprune.data.panel import Panel, Series
from tsprune.evaluation.overlap import pretraining_overlap, public_sets
from tsprune.preparing import sample_panel

ETT = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
WEATHER = ("p (mbar)", "T (degC)", "Tpot (K)", "rh (%)")


def panel(source: str, ids: tuple[str, ...] = ("a",), length: int = 30) -> Panel:
    values = np.arange(length, dtype=np.float32)
    return Panel(tuple(Series(name, values) for name in ids), source=source)


def corpora(name: str) -> Any:
    return tsprune.load(name).pretraining_corpora if name == "mini" else registry.find(
        "tsprune.models", name
    ).FAMILY.pretraining_corpora  # fmt: skip


@pytest.mark.parametrize(("name", "sets"), [
    ("ETTh1.csv.gz", {"ETT (station 1)"}), ("data/ETTm2.parquet", {"ETT (station 2)"}),
    ("ett_hourly", {"ETT (station 1)", "ETT (station 2)"}), ("electricity_7clients.csv", {"electricity"}),
    ("ECL.csv", {"electricity"}), ("monash_electricity_hourly", {"electricity"}), ("LD2011_2014.txt", set()),
    ("m4_hourly_train.csv.gz", {"m4"}), ("monash_m4_weekly", {"m4"}), ("exchange_rate.csv", {"exchange_rate"}),
    ("weather.csv", {"weather", "jena_weather"}), ("monash_weather", {"weather"}), ("traffic_hourly", {"traffic"}),
    ("monash_saugeenday.csv", {"saugeen"}), ("sales2024.csv", set()), ("australian_electricity_demand",
    {"australian_electricity"}), ("memory", set()), ("", set()), ("gettysburg.csv", set()),
])  # fmt: skip
def test_names_of_public_sets_are_known_under_their_aliases(name: str, sets: set[str]) -> None:
    assert public_sets(name) == sets


@pytest.mark.parametrize(("model", "source", "ids", "answer"), [
    ("mini", "ETTh1.csv.gz", ETT, "no"), ("mini", "mine.csv", ETT, "no"), ("mini", "weather.csv.gz", WEATHER, "no"),
    ("mini", "weather.csv", ("rain",), "unknown"), ("mini", "electricity_7clients.csv", ("0", "OT"), "no"),
    ("mini", "m4_weekly_train.csv.gz", ("W1",), "no"), ("mini", "nyc_taxi.csv", ("a",), "yes"),
    ("mini", "monash_m3_other.csv", ("a",), "yes"), ("mini", "shop.csv", ("a",), "unknown"),
    ("mini", "memory", ("a",), "unknown"),
    ("timesfm", "weather.csv.gz", WEATHER, "yes"), ("timesfm", "ECL.csv", ("OT",), "yes"),
    ("timesfm", "ETTh1.csv", ETT, "unknown"),
    ("chronos_t5", "m4_hourly_train.csv", ("H1",), "yes"), ("chronos_bolt", "monash_electricity.csv", ("T1",), "yes"),
    ("chronos_bolt", "ETTm1.csv", ETT, "no"), ("chronos_bolt", "monash_hospital.csv", ("T1",), "no"),
    ("moirai", "ETTh2.csv", ETT, "no"), ("moirai", "m4_hourly.csv", ("H1",), "unknown"),
    ("time_moe", "ETTh2.csv", ETT, "no"), ("time_moe", "electricity_7clients.csv", ("0",), "unknown"),
    ("ttm", "ETTh1.csv", ETT, "no"), ("ttm", "metr_la.csv", ("a",), "unknown"), ("ttm", "solar.csv", ("a",), "yes"),
    ("patchtst", "ETTm1.csv", ETT, "yes"), ("patchtst", "ETTh2.csv", ETT, "no"), ("patchtst", "own.csv", ETT, "yes"),
    ("moirai2", "ETTh1.csv", ETT, "unknown"), ("toto", "ETTh1.csv", ETT, "unknown"),
    ("chronos2", "ETTh1.csv", ETT, "unknown"),
])  # fmt: skip
def test_overlap_is_yes_no_or_unknown(model: str, source: str, ids: tuple[str, ...], answer: str) -> None:
    found, why = pretraining_overlap(panel(source, ids), corpora(model))
    assert (found, bool(why)) == (answer, True), why


def test_a_common_name_proves_nothing_but_the_size_of_the_public_set_does() -> None:
    mine, public = panel("exchange_rate.csv", tuple("abcdefgh")), panel("exchange_rate.csv", tuple("abcdefgh"), 7588)
    assert pretraining_overlap(mine, ("simulated",))[0] == "unknown"
    assert pretraining_overlap(public, ("simulated",))[0] == "no"


def test_the_sample_is_not_in_the_corpus_of_the_bundled_models() -> None:
    for name in ("mini", "mini-moe"):
        assert pretraining_overlap(sample_panel(), tsprune.load(name).pretraining_corpora)[0] == "no"


def test_every_source_of_the_bundled_corpus_is_a_known_set() -> None:
    """Otherwise no data could ever be told apart from it."""
    sources = [name for name in tsprune.load("mini").pretraining_corpora or () if "simulated" not in name]
    assert len(sources) == 30
    assert [name for name in sources if not public_sets(name)] == []
    for name in sources:
        assert pretraining_overlap(panel(name), sources)[0] == "yes"


def test_an_empty_corpus_proves_nothing() -> None:
    assert pretraining_overlap(panel("ETTh1.csv", ETT), ())[0] == "unknown"
