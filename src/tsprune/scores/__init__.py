"""Importance of units, one file per score. The file name is the score's name.

Every score module has `NEEDS` (`weights`, `forward` or `backward`) and a function

    scores(model, batches, *, kinds, seed) -> {group name: importance of each unit [U], higher = keep}

which leaves the model as it found it.
"""
