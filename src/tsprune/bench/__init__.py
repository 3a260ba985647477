"""Grids of models, data sets, horizons, candidates and seeds: what is run, where it is kept, and what is made of it."""
