"""The speed ladder: models in turn on every runtime, so that what pruning gives and what the runtime gives part."""
