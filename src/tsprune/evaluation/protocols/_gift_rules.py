"""What GIFT-Eval derives from a name and a frequency (Aksu et al. 2024).

Sources: `src/gift_eval/data.py` and `notebooks/dataset_properties.json` of SalesforceAIResearch/gift-eval (2025),
gluonts 0.17.0 `time_feature/seasonality.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tsprune.errors import TspruneError

TERMS = {"short": 1, "medium": 10, "long": 15}
"""How many prediction lengths a term has."""

_FAMILIES = {
    **dict.fromkeys(("us", "U"), "us"),
    **dict.fromkeys(("s", "S"), "s"),
    **dict.fromkeys(("min", "T"), "min"),
    **dict.fromkeys(("h", "H"), "h"),
    **dict.fromkeys(("d", "D"), "D"),
    **dict.fromkeys(("B",), "B"),
    **dict.fromkeys(("W",), "W"),
    **dict.fromkeys(("M", "ME", "MS"), "M"),
    **dict.fromkeys(("Q", "QE", "QS"), "Q"),
    **dict.fromkeys(("A", "Y", "YE", "YS", "AS"), "A"),
}
_SEASONS = {"s": 3600, "min": 1440, "h": 24, "B": 5, "M": 12, "Q": 4}
_LENGTHS = {"s": 60, "min": 48, "h": 48, "D": 30, "W": 8, "M": 12}
_M4_LENGTHS = {"h": 48, "D": 14, "W": 13, "M": 18, "Q": 8, "A": 6}
_TEST_SHARE, _MOST_WINDOWS = 0.1, 20


@dataclass(frozen=True)
class Published:
    """A data set of the benchmark.

    Args:
        domain: as the result files have it.
        variates: variates per item.
        frequency: of sets that come in one frequency only; others carry it in their name, after a slash.
    """

    domain: str
    variates: int = 1
    frequency: str = ""


SETS = {
    "m4_yearly": Published("Econ/Fin", frequency="A"),
    "m4_quarterly": Published("Econ/Fin", frequency="Q"),
    "m4_monthly": Published("Econ/Fin", frequency="M"),
    "m4_weekly": Published("Econ/Fin", frequency="W"),
    "m4_daily": Published("Econ/Fin", frequency="D"),
    "m4_hourly": Published("Econ/Fin", frequency="H"),
    "electricity": Published("Energy"),
    "ett1": Published("Energy", 7),
    "ett2": Published("Energy", 7),
    "solar": Published("Energy"),
    "hospital": Published("Healthcare", frequency="M"),
    "covid_deaths": Published("Healthcare", frequency="D"),
    "us_births": Published("Healthcare"),
    "saugeen": Published("Nature"),
    "temperature_rain": Published("Nature", frequency="D"),
    "kdd_cup_2018": Published("Nature"),
    "jena_weather": Published("Nature", 21),
    "car_parts": Published("Sales", frequency="M"),
    "restaurant": Published("Sales", frequency="D"),
    "hierarchical_sales": Published("Sales"),
    "loop_seattle": Published("Transport"),
    "sz_taxi": Published("Transport"),
    "m_dense": Published("Transport"),
    "bitbrains_fast_storage": Published("Web/CloudOps", 2),
    "bitbrains_rnd": Published("Web/CloudOps", 2),
    "bizitobs_application": Published("Web/CloudOps", 2, "10S"),
    "bizitobs_service": Published("Web/CloudOps", 2, "10S"),
    "bizitobs_l2c": Published("Web/CloudOps", 7),
}


def result_name(data: str) -> str:
    """The name under which a data set stands in the result files: lower case, without "_with_missing"."""
    name = data.split("/")[0].lower().removesuffix("_with_missing")
    return "saugeen" if name == "saugeenday" else name


def family(frequency: str) -> tuple[int, str]:
    """How many of which unit a step is: "15T" is (15, "min"), "W-WED" (1, "W").

    Raises:
        TspruneError: if the frequency is not known.
    """
    found = re.fullmatch(r"(\d*)([A-Za-z]+)(?:-[A-Za-z]{3})?", frequency.strip())
    if not found or found[2] not in _FAMILIES or found[1] == "0":
        raise TspruneError(f"the frequency {frequency!r} is not known: expected one such as 10S, 15T, H, D, W, M, Q, A")
    return int(found[1] or 1), _FAMILIES[found[2]]


def season(frequency: str) -> int:
    """Season in steps as gluonts counts it: an hour of seconds, a day of minutes or hours, a year of months, or 1."""
    many, unit = family(frequency)
    whole, rest = divmod(_SEASONS.get(unit, 1), many)
    return 1 if rest else whole


def prediction_length(data: str, frequency: str, term: str) -> int:
    """Steps to forecast.

    Raises:
        TspruneError: for an unknown term, or a frequency that the benchmark has no length for.
    """
    if term not in TERMS:
        raise TspruneError(f"the term is {term!r}, expected one of {', '.join(TERMS)}")
    lengths = _M4_LENGTHS if "m4" in data else _LENGTHS
    unit = family(frequency)[1]
    if unit not in lengths:
        raise TspruneError(
            f"GIFT-Eval has no prediction length for the frequency {frequency!r} of {data!r}, only for "
            f"{', '.join(lengths)}; give a horizon"
        )
    return TERMS[term] * lengths[unit]


def window_count(data: str, shortest: int, horizon: int) -> int:
    """Test windows per series: a tenth of the shortest series, at least 1 and at most 20; 1 for the M4 sets."""
    if "m4" in data:
        return 1
    return min(max(1, math.ceil(_TEST_SHARE * shortest / horizon)), _MOST_WINDOWS)
