"""Whether a model may have seen the data in pretraining: what is known about public data sets and corpora."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tsprune.data.panel import Panel
from tsprune.data.words import listed

Verdict = Literal["yes", "no", "unknown"]

SIMULATED = ("simulated", "kernel_synth", "kernelsynth")
"""Words in the name of a corpus that holds no real series."""

# Names under which the usual public sets appear: of files, of corpora, and in the lists of papers. A regular
# expression per set, on lower-case names with underscores; subsets and samplings count as the set itself.
_NAMES: dict[str, str] = {
    "ETT (station 1)": r"ett(_?small|_?[hm]_?1?|_?1?|_?(hourly|15min|15t))(_?h|_?15t)?",
    "ETT (station 2)": r"ett(_?small|_?[hm]_?2?|_?2?|_?(hourly|15min|15t))(_?h|_?15t)?",
    "exchange_rate": r"exchange(_rate)?s?",
    "electricity": r"ecl|uci_electricity|electricity(_?load.*|_?ld.*|_\d+_?clients|_hourly|_weekly|_15min|_321.*)?",
    "jena_weather": r"jena(_weather.*|_climate.*)?|weather_jena",
    "traffic": r"(pems_|sf_)?traffic(_hourly|_weekly)?|sf_traffic",
    "weather": r"weather|oikolab_weather",
    "m1": r"m1(_.*)?",
    "m3": r"m3(_.*)?",
    "m4": r"m4(_.*)?",
    "m5": r"m5(_.*)?",
    "tourism": r"tourism(_.*)?",
    "hospital": r"hospital",
    "fred_md": r"fred_md",
    "nn5": r"nn5(_.*)?",
    "cif_2016": r"cif(_2016.*)?",
    "covid_deaths": r"covid_deaths",
    "car_parts": r"car_parts(_.*)?",
    "dominick": r"dominick",
    "ercot": r"ercot(_load)?",
    "saugeen": r"saugeen(day|_river_flow)?",
    "sunspots": r"sunspots?(_.*)?",
    "us_births": r"us_births|births",
    "australian_electricity": r"(australian|aus)_electricity(_demand)?|elecdemand",
    "australian_weather": r"australian_weather|temperature_rain(_.*)?",
    "bitcoin": r"bitcoin(_.*)?",
    "kdd_cup_2018": r"kdd_(cup_)?2018(_.*)?",
    "london_smart_meters": r"london_smart_meters(_.*)?",
    "solar": r"solar(_.*)?",
    "wind_farms": r"wind_farms?(_.*)?",
    "wind_power": r"wind_power(_.*)?",
    "pedestrian_counts": r"pedestrian_counts",
    "rideshare": r"rideshare(_.*)?",
    "nyc_taxi": r"(nyc_)?taxi(_.*)?|taxi_new_york.*",
    "uber_tlc": r"uber_tlc(_.*)?",
    "ushcn": r"ushcn(_daily)?",
    "weatherbench": r"weatherbench(_.*)?|era5",
    "wiki": r"wiki(_.*|pedia.*)?|kaggle_web_traffic(_.*)?|peyton_manning|wp_log_peyton_manning",
    "mexico_city_bikes": r"mexico_city_bikes",
    "brazilian_cities_temperature": r"brazilian_cities_temperature",
    "spanish_energy_and_weather": r"spanish_energy_and_weather",
    "bike_sharing": r"bike_sharing(_.*)?|bundled_sample_hourly_bike_rentals",
    "epf": r"epf(_.*)?",
    "gefcom2014": r"gefcom2014.*",
    "pjm": r"pjm(_.*)?|(aep|pjme)_hourly",
    "metr_la": r"metr_la(_.*)?",
    "air_passengers": r"air_?passengers",
    "melbourne_min_temp": r"melbourne_min_temp|daily_min_temperatures",
    "retail_sales_us": r"retail_sales(_us)?",
    "us_gasoline": r"us_gasoline",
    "ausbeer": r"ausbeer",
    "milk": r"milk|monthly_milk.*",
    "wineind": r"wineind",
    "woolyrnq": r"woolyrnq",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _NAMES.items()}

_ETT = frozenset({"ETT (station 1)", "ETT (station 2)"})
_COMMON = frozenset(
    {
        "weather",
        "traffic",
        "electricity",
        "solar",
        "hospital",
        "milk",
        "bitcoin",
        "wiki",
        "taxi",
        "births",
        "traffic_hourly",
    }
    | {"exchange", "exchange_rate", "exchange_rates", "retail_sales", "sunspots", "rideshare", "tourism"}
)
"""Names that anyone might give to a file of one's own: alone they do not prove that the data are the public set."""

_SIZES: dict[str, tuple[int, int]] = {
    "exchange_rate": (8, 7588),
    "electricity": (321, 26304),
    "traffic": (862, 17544),
}
"""Series and steps of the long-horizon sets, which do prove it."""

_COLUMNS: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (frozenset({"HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL"}), _ETT),
    (frozenset({"p (mbar)", "T (degC)", "Tpot (K)"}), frozenset({"jena_weather"})),
)
"""Columns by which sets are known whatever the file is called."""

_COLLECTIONS: dict[str, frozenset[str]] = {
    "lotsa": _ETT | {"jena_weather", "electricity"},
    "time-300b": _ETT | {"jena_weather"},
    "larger collection of ttm r2": _ETT | {"jena_weather", "electricity", "traffic"},
}
"""Large collections, and the sets that their authors kept out of them to test zero-shot (Moirai, arXiv 2402.02592;
Time-MoE, arXiv 2409.16040; TTM, arXiv 2401.03955). About any other set nothing is claimed."""

Relation = Literal["holds", "apart", "unknown"]


def public_sets(name: str) -> frozenset[str]:
    """The public data sets that a name of a file, a corpus or a hub id may stand for; empty for an unknown name."""
    plain = _plain(name)
    tries = {plain, re.sub(r"^(monash|gluonts|chronos|autogluon|libcity)_", "", plain)}
    tries |= {re.sub(r"_(dataset|data|train|test|val|validation|full|with(out)?_missing.*)$", "", one) for one in tries}
    found = {key for key, pattern in _PATTERNS.items() if any(pattern.fullmatch(one) for one in tries)}
    # A bare "weather" is the Jena station of the long-horizon sets as often as Monash's.
    return frozenset(found | ({"jena_weather"} if "weather" in found and plain == "weather" else set()))


def sets_of(panel: Panel) -> tuple[frozenset[str], bool]:
    """The public sets that a panel may be, and whether more than a common word says so."""
    named = public_sets(panel.source)
    for columns, sets in _COLUMNS:
        if columns <= {*panel.ids, *panel.past_names, *panel.known_names}:
            return (named & sets) or sets, True
    size = (len(panel.series), int(panel.lengths.max()))
    if sized := frozenset(name for name in named if _SIZES.get(name) == size):
        return sized, True
    return named, bool(named) and _plain(panel.source) not in _COMMON


def relation(corpus: str, sets: frozenset[str]) -> Relation:
    """How one source of a corpus stands to the data: it may hold them, it is another set, or nothing is known."""
    lower = corpus.lower()
    if any(word in lower for word in SIMULATED):
        return "apart"
    if lower in _COLLECTIONS:
        return "apart" if sets and sets <= _COLLECTIONS[lower] else "unknown"
    members = public_sets(corpus)
    if members & sets:
        return "holds"
    return "apart" if members and sets else "unknown"


def pretraining_overlap(panel: Panel, corpora: Sequence[str] | None) -> tuple[Verdict, str]:
    """Whether a model pretrained on `corpora` may have seen the series: yes, no or unknown, and why.

    "yes" where a source of the corpus has the name of the file, or is the public set that the data are by name or by
    columns. "no" only where the data are such a set and every source is known to be another one, is simulated, or
    leaves that set out by its authors' word. Anything else is unknown: other names may hide the same data.

    Args:
        panel: the series.
        corpora: names of the sources of pretraining; None where nobody said.
    """
    if corpora is None:
        return "unknown", "the pretraining corpus of this model is not known to tsprune"
    stem = _stem(panel.source)
    if named := [name for name in corpora if stem and stem == _stem(name)]:
        return "yes", f"the pretraining corpus names {Path(named[0]).name}"
    sets, sure = sets_of(panel)
    relations: Mapping[str, Relation] = {name: relation(name, sets) for name in corpora}
    if holding := [name for name, how in relations.items() if how == "holds"]:
        return "yes", f"the pretraining corpus holds {listed(holding)}, which is or contains {_words(sets)}"
    open_ones = [name for name, how in relations.items() if how == "unknown"]
    if sets and sure and corpora and not open_ones:
        return "no", (
            f"the data are {_words(sets)}, and none of the {len(corpora)} sources of the pretraining corpus holds it"
        )
    if sets and not sure and not open_ones:
        return "unknown", f"only the name of the data says that they are {_words(sets)}, which the corpus does not hold"
    if sets:
        return (
            "unknown",
            f"the data look like {_words(sets)}; what {listed(open_ones)} in the corpus holds is not known",
        )
    return "unknown", (
        f"of the {len(corpora)} sources in the corpus none is called {stem!r}; other names may hide the same data"
    )


def _stem(name: str) -> str:
    """The lower-case name of a file or hub id without its endings."""
    base = Path(name).name.lower() if name else ""
    return re.sub(r"(\.(csv|parquet|pq|txt|tsf|gz|zip))+$", "", base)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", _stem(name)).strip("_")


def _words(sets: frozenset[str]) -> str:
    return " or ".join(sorted(sets))
