"""How much to remove when, and when to score again.

One file per schedule, the file name is its name; it gives its class as `SCHEDULE`.
"""
