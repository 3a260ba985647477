"""Grids of models, data sets, horizons, candidates and seeds: what is run, where it is kept, and what is made of it."""

SPECIALIST = "specialist"
"""The candidate that validation chose, the model as it came among them: what a run would hand back."""
