"""What started this process, as the environment tells; torch is not loaded to see it."""

from __future__ import annotations

import os

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def world_size() -> int:
    """Return how many processes the launcher says it started: torchrun, Accelerate, or mpirun."""
    return max(int(os.environ.get(name, "1")) for name in _SIZES)


def missing_launcher() -> str | None:
    """Return a warning where `accelerate launch` was asked for several processes and started one; else None."""
    if world_size() > 1 or not {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys():
        return None
    return (
        "accelerate launch was asked for several processes and started one, as it does where it finds no GPUs "
        "(accelerate 1.15): add --multi_gpu, which works on CPUs too, or use torchrun --nproc-per-node"
    )
