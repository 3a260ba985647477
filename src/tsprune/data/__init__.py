"""The user's series: reading, splitting, windows, and simulated series for pretraining."""
