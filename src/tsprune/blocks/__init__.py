"""Network parts that know what can be removed from them. They know nothing of models, scores or plans."""
