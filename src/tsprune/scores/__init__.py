"""Importance of units, one file per score. The file name is the score's name.

Every score module has `NEEDS` (`weights`, `forward` or `backward`) and a function

    scores(model, batches, *, kinds, seed) -> {group name: importance of each unit [U], float64, higher = keep}

which leaves the model as it found it and does not depend on how windows are batched or shared among processes
(`_work.py`). `KINDS` names the kinds of units it can score, where it cannot do all. A score that needs no more of
the windows than sums over them has two functions more, whose composition is `scores`: then parts of the data can be
compared without a further pass (`tsprune.stability`).

    collect(model, batches, *, kinds) -> Totals
    finish(model, totals, *, kinds) -> scores

One that has something to say of its scores, such as what it chose by the windows, says it in `told(model, scores)`, a
list of lines.
"""
