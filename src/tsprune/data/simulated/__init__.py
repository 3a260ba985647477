"""Simulated training windows: seasons to copy, walks not to extrapolate, and much between."""

from __future__ import annotations

from tsprune.data.simulated.source import Shares, WindowSource

__all__ = ["Shares", "WindowSource"]
