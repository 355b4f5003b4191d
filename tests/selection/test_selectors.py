import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpcal.core.errors import InputError
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Pool
from hpcal.selection.farthest_point import FarthestPoint
from hpcal.selection.random import Random

NOTHING = np.zeros((0, 3))


def make_pool(n, seed=0, width=3, ids=None, values=None):
    rng = np.random.default_rng(seed)
    return Pool(
        ids=np.arange(100, 100 + n) if ids is None else np.asarray(ids),
        features=rng.normal(size=(n, width)),
        values=rng.uniform(size=n) if values is None else np.asarray(values, dtype=float),
    )


def pick(pool, known=NOTHING, budget=5, seed=0, **changes):
    selector = FarthestPoint(FarthestPoint.Settings(**changes))
    return selector.select(pool, known, budget, np.random.default_rng(seed))


def chosen(choices):
    return [c.structure_id for c in sorted((c for c in choices if c.chosen), key=lambda c: c.rank)]


def greedy(pool, known, budget):
    """The definition, spelled out: recompute all distances in each round."""
    centres, picked = [*known], []
    for _ in range(budget):
        best = None
        for i in range(len(pool.ids)):
            if i in picked:
                continue
            near = min((float(np.sqrt(((pool.features[i] - c) ** 2).sum())) for c in centres), default=np.inf)
            key = (-near, -pool.values[i], pool.ids[i])
            if best is None or key < best[0]:
                best = (key, i)
        picked.append(best[1])
        centres.append(pool.features[best[1]])
    return [int(pool.ids[i]) for i in picked]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 20), k=st.integers(0, 6), budget=st.integers(1, 20), seed=st.integers(0, 99))
def test_it_is_greedy_k_centre(n, k, budget, seed):
    pool, known = make_pool(n, seed), np.random.default_rng(seed + 1).normal(size=(k, 3))
    assert chosen(pick(pool, known, budget)) == greedy(pool, known, min(budget, n))


def test_every_candidate_has_one_choice_in_its_order():
    pool = make_pool(12)
    choices = pick(pool, make_pool(3, 9).features, budget=4)
    assert [c.structure_id for c in choices] == pool.ids.tolist()
    assert sorted(c.rank for c in choices if c.chosen) == [0, 1, 2, 3]
    assert all(c.rank is None and "budget of 4" in c.reason for c in choices if not c.chosen)


def test_distances_fall_and_are_in_the_reasons():
    choices = pick(make_pool(30), make_pool(3, 9).features, budget=10)
    ranked = sorted((c for c in choices if c.chosen), key=lambda c: c.rank)
    distances = [c.distance for c in ranked]
    assert distances == sorted(distances, reverse=True)
    assert all(f"{c.distance:.4g}" in c.reason for c in ranked)


def test_near_duplicates_are_passed_over_with_the_reason():
    pool = make_pool(4)
    features = np.array(pool.features)
    features[2] = features[0] + 1e-4
    pool = Pool(ids=pool.ids, features=features, values=np.array([1.0, 0.5, 0.9, 0.2]))
    choices = pick(pool, budget=4, min_distance=0.01)
    assert chosen(choices)[0] == 100
    assert [c.chosen for c in choices] == [True, True, False, True]
    assert "near-duplicate" in choices[2].reason
    assert choices[2].distance == pytest.approx(np.sqrt(3) * 1e-4)
    assert len(chosen(pick(pool, budget=4))) == 4


def test_what_is_known_exactly_is_not_chosen_again():
    pool = make_pool(3)
    choices = pick(pool, pool.features[1:2], budget=3)
    assert chosen(choices)
    assert not choices[1].chosen
    assert "near-duplicate" in choices[1].reason


def test_duplicates_far_from_the_origin_are_told_apart():
    """|a|² + |b|² − 2ab would give zero for both distances here."""
    features = 1e8 + np.array([[0.0, 0, 0], [1.0, 0, 0], [3.0, 0, 0]])
    pool = Pool(ids=np.array([1, 2, 3]), features=features, values=np.zeros(3))
    choices = pick(pool, features[:1], budget=2)
    assert chosen(choices) == [3, 2]
    assert [c.distance for c in choices] == [0.0, 1.0, 3.0]


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8)))
def test_the_order_of_the_pool_does_not_matter(order):
    """Ties in distance go to the higher value, then to the lower id."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    values = np.array([1, 1, 1, 3, 1, 3, 1, 1], dtype=float)
    ids, order = np.arange(8), list(order)
    pool = Pool(ids=ids[order], features=corners[order], values=values[order])
    straight = Pool(ids=ids, features=corners, values=values)
    assert chosen(pick(pool, budget=5)) == chosen(pick(straight, budget=5))
    assert chosen(pick(straight, budget=1)) == [3]


def test_nothing_in_nothing_out():
    empty = Pool(ids=np.zeros(0, dtype=np.int64), features=np.zeros((0, 3)), values=np.zeros(0))
    for selector in (FarthestPoint(FarthestPoint.Settings()), Random(Random.Settings())):
        rng = np.random.default_rng(0)
        assert list(selector.select(empty, NOTHING, 5, rng)) == []
        assert list(selector.select(empty, np.ones((2, 3)), 5, rng)) == []
        assert not any(c.chosen for c in selector.select(make_pool(3), np.zeros((0, 0)), 0, rng))


def test_descriptors_that_cannot_be_compared_are_refused():
    pool = make_pool(3)
    with pytest.raises(InputError, match="length 3, known structures of 2"):
        pick(pool, np.zeros((1, 2)))
    features = np.array(pool.features)
    features[1, 2] = np.nan
    with pytest.raises(InputError, match="structure 101"):
        pick(Pool(ids=pool.ids, features=features, values=pool.values))


def test_farthest_point_covers_better_than_chance():
    """Largest distance of a candidate to its nearest choice, against the best of 20 random draws."""
    pool = make_pool(400, width=2)
    picks = [chosen(pick(pool, np.zeros((0, 2)), budget=15))]
    rng = np.random.default_rng(0)
    picks += [chosen(Random(Random.Settings()).select(pool, NOTHING, 15, rng)) for _ in range(20)]

    def radius(ids):
        centres = pool.features[np.isin(pool.ids, ids)]
        return np.sqrt(((pool.features[:, None] - centres) ** 2).sum(-1)).min(axis=1).max()

    radii = [radius(p) for p in picks]
    assert radii[0] < min(radii[1:])


def test_random_is_uniform_and_does_not_depend_on_the_order():
    pool = make_pool(10)
    turned = Pool(ids=pool.ids[::-1], features=pool.features[::-1], values=pool.values[::-1])
    selector, counts = Random(Random.Settings()), dict.fromkeys(pool.ids.tolist(), 0)
    for seed in range(2000):
        picked = chosen(selector.select(pool, NOTHING, 3, np.random.default_rng(seed)))
        assert len(picked) == len(set(picked)) == 3
        if seed < 20:
            assert picked == chosen(selector.select(turned, NOTHING, 3, np.random.default_rng(seed)))
        for structure_id in picked:
            counts[structure_id] += 1
    # Chi-squared with nine degrees of freedom (a little less spread, as draws exclude each other).
    statistic = sum((c - 600) ** 2 / 600 for c in counts.values())
    assert statistic < stats.chi2.ppf(1 - 1e-5, 9)


def test_random_takes_what_there_is():
    choices = Random(Random.Settings()).select(make_pool(3), NOTHING, 10, np.random.default_rng(0))
    assert [c.chosen for c in choices] == [True] * 3
    assert all("drawn at random from 3 candidates" in c.reason for c in choices)


@pytest.mark.parametrize(("name", "cls"), [("farthest_point", FarthestPoint), ("random", Random)])
def test_selectors_are_found_by_name(name, cls):
    assert find(Group.SELECTORS, name) is cls
