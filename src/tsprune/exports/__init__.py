"""Forms in which a model leaves tsprune: one file each, with `EXPORT`."""
