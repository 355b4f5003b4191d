import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcal.sampling.streams import BLOCK, Noise, Purpose, generator

CPU = torch.device("cpu")


def series(noise: Noise, starts: list[int], count: int) -> np.ndarray:
    return torch.stack([noise.at(np.array(starts) + k) for k in range(count)]).numpy()


@settings(max_examples=25, deadline=None)
@given(stream=st.integers(0, 2**63 - 1), start=st.integers(0, 3 * BLOCK), other=st.integers(0, 2**31))
def test_noise_depends_on_stream_and_step_alone(stream, start, other):
    alone = series(Noise([stream], [3], 3, CPU), [0], start + 5)
    beside = series(Noise([other, stream], [5, 3], 5, CPU), [7, start], 5)
    np.testing.assert_array_equal(beside[:, 1, :3], alone[start:, 0])
    assert not beside[:, 1, 3:].any()


def test_streams_purposes_and_blocks_differ():
    draws = [
        generator(stream, purpose, block).standard_normal(4)
        for stream in (1, 2)
        for purpose in Purpose
        for block in (0, 1)
    ]
    assert len({d.tobytes() for d in draws}) == len(draws)


@pytest.mark.physics
def test_noise_is_standard_normal_and_uncorrelated():
    noise = series(Noise(list(range(20)), [4] * 20, 4, CPU), [0] * 20, 500)
    n = noise.size
    # Five standard errors each: a false alarm once in 3 million runs.
    assert abs(noise.mean()) < 5 / np.sqrt(n)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((noise[1:] * noise[:-1]).mean()) < 5 / np.sqrt(n)
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 5 / np.sqrt(n)
