"""The report room: the verdict in words, the table for the terminal, and the self-contained HTML report."""

from __future__ import annotations

from tsprune.report.figures import ForecastExample
from tsprune.report.html import write_report
from tsprune.report.protocol import protocol_words
from tsprune.report.table import results_table, results_text
from tsprune.report.verdict import verdict

__all__ = ["ForecastExample", "protocol_words", "results_table", "results_text", "verdict", "write_report"]
