"""The same sums in the same order on a GPU, so that a training goes on from a checkpoint to the bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils.deterministic as filling


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Within it, torch takes the variants of its operations whose order of sums is fixed.

    Operations that have none warn. On the CPU all orders are fixed anyway, for one number of threads.
    """
    if device.type != "cuda":
        yield
        return
    # cuBLAS is only deterministic with workspaces of a fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = filling.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads memory that it has not written.
    filling.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        filling.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(before, warn_only=warned)
