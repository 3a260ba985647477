"""What goes wrong through a user's input, as opposed to a defect of ours."""

from __future__ import annotations


class TspruneError(ValueError):
    """A mistake in the input, or a request that cannot be met.

    The message is one line for a person: what was found, what was expected, how to fix it. The command line
    prints it and exits with code 2.
    """
