"""How many processes a launcher started, and which of them this is; read from the environment alone."""

from __future__ import annotations

import os

# As accelerate reads them: of torch's launcher, and of the usual kinds of MPI.
WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")


def started() -> int:
    """How many processes a launcher started, this one included; 1 without a launcher."""
    return max(1, _number(WORLD, 1))


def rank() -> int:
    """Number of this process, from 0."""
    return _number(RANK, 0)


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return _number(LOCAL, 0)


def _number(names: tuple[str, ...], otherwise: int) -> int:
    """The first of these environment variables that holds a number."""
    for name in names:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return otherwise
