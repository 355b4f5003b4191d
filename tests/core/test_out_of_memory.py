"""Not enough memory is known as such, whoever says so."""

from __future__ import annotations

import pytest
import torch

from hpcal.core.errors import out_of_memory


def too_much() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), too_much()])
def test_memory(error):
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("can't allocate memory")])
def test_something_else(error):
    assert not out_of_memory(error)
