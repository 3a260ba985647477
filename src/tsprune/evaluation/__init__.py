"""The evaluation room: error measures, baselines, what a model costs, and the machine it was measured on."""
