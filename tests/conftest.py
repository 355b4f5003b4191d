"""Settings of the whole test suite."""

from __future__ import annotations

import os

# Before anything imports a numerical library: tests share few cores, and one thread is reproducible.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
