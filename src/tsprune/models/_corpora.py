"""Pretraining corpora that several families share."""

from __future__ import annotations

CHRONOS = (
    "brazilian_cities_temperature", "mexico_city_bikes", "solar", "solar_1h", "spanish_energy_and_weather",
    "taxi_1h", "ushcn_daily", "weatherbench_hourly", "weatherbench_daily", "weatherbench_weekly",
    "wiki_daily_100k", "wind_farms_hourly", "wind_farms_daily", "electricity_15min", "monash_electricity_hourly",
    "monash_electricity_weekly", "monash_kdd_cup_2018", "monash_london_smart_meters", "m4_daily", "m4_hourly",
    "m4_monthly", "m4_weekly", "monash_pedestrian_counts", "monash_rideshare", "taxi_30min",
    "monash_temperature_rain", "uber_tlc_daily", "uber_tlc_hourly", "kernel_synth",
)  # fmt: skip
"""Those of arXiv 2403.07815, table 2, under the names the authors published them by. Chronos-Bolt was trained on the
same real data, as an author says in amazon-science/chronos-forecasting#245."""
