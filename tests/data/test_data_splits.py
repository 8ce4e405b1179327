"""Splits: sizes, seeds, groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escaip_fairchem.data.splits import SplitOptions, divide
from escaip_fairchem.errors import DataError


def as_lists(split: dict) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, rows in split.items()}


def test_without_shuffling_splits_are_consecutive():
    assert as_lists(divide(10, SplitOptions(parts=(0.7, 0.2, 0.1), shuffle=False))) == {
        "train": [0, 1, 2, 3, 4, 5, 6],
        "val": [7, 8],
        "test": [9],
    }


def test_the_seed_decides_and_nothing_else():
    options = SplitOptions(parts=(0.5, 0.5), seed=3)
    assert as_lists(divide(50, options)) == as_lists(divide(50, options))
    assert as_lists(divide(50, options)) != as_lists(divide(50, SplitOptions(parts=(0.5, 0.5), seed=4)))


@given(
    count=st.integers(1, 200),
    parts=st.sampled_from([(1.0,), (0.1, 0.9), (0.9, 0.1), (0.8, 0.1, 0.1), (0.5, 0.0, 0.5), (1 / 3, 1 / 3, 1 / 3)]),
    seed=st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_fractions_use_everything_once_and_fill_every_split_asked_for(count: int, parts: tuple[float, ...], seed: int):
    split = divide(count, SplitOptions(parts=parts, seed=seed))
    rows = np.concatenate(list(split.values()))
    assert sorted(rows) == list(range(count))
    assert len(split["train"]) > 0
    asked = [name for name, part in zip(split, parts, strict=True) if part > 0]
    if count >= len(asked):
        assert all(len(split[name]) > 0 for name in asked)
    for name, part in zip(split, parts, strict=True):
        assert abs(len(split[name]) - part * count) <= len(parts)


def test_counts_are_exact_and_leave_the_rest():
    split = divide(100, SplitOptions(parts=(60, 20, 10)))
    assert [len(rows) for rows in split.values()] == [60, 20, 10]
    assert len(set(np.concatenate(list(split.values())))) == 90


@given(
    groups=st.lists(st.integers(0, 12), min_size=1, max_size=120),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
    parts=st.sampled_from([(0.8, 0.1, 0.1), (0.1, 0.2, 0.7)]),
)
@settings(max_examples=100, deadline=None)
def test_a_group_never_spans_two_splits(groups: list[int], seed: int, shuffle: bool, parts: tuple[float, ...]):
    names = np.array([f"g{group}" for group in groups])
    split = divide(len(groups), SplitOptions(parts=parts, seed=seed, shuffle=shuffle), names)
    assert len(split["train"]) > 0
    assert sorted(np.concatenate(list(split.values()))) == list(range(len(groups)))
    members = [set(names[rows]) for rows in split.values()]
    assert sum(len(member) for member in members) == len(set(names))
    if len(set(names)) >= 3:
        assert all(members)


def test_groups_come_close_to_the_sizes_asked_for():
    names = np.array([f"g{index // 5}" for index in range(1000)])
    sizes = [len(rows) for rows in divide(1000, SplitOptions(parts=(0.8, 0.1, 0.1)), names).values()]
    np.testing.assert_allclose(sizes, [800, 100, 100], atol=5)


def test_counts_with_groups_leave_whole_groups_over():
    names = np.array([f"g{index // 5}" for index in range(1000)])
    split = divide(1000, SplitOptions(parts=(100, 50)), names)
    np.testing.assert_allclose([len(rows) for rows in split.values()], [100, 50], atol=5)


def test_too_little_for_all_splits_is_trained_on():
    assert as_lists(divide(1, SplitOptions(parts=(0.05, 0.95)))) == {"train": [0], "val": []}
    one_group = np.array(["g"] * 4)
    assert [len(rows) for rows in divide(4, SplitOptions(parts=(0.1, 0.9)), one_group).values()] == [4, 0]
    assert [len(rows) for rows in divide(4, SplitOptions(parts=(1, 2)), one_group).values()] == [4, 0]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((0.5, 0.2), "add up to 0.7"),
        ((0.5, 0.3, 0.1, 0.1), "one to three numbers"),
        ((-0.5, 1.5), "none negative"),
        ((0, 1.0), "nothing to train on"),
        ((10, 2.5), "add up to 12.5"),
        ((), "one to three numbers"),
    ],
)
def test_parts_that_make_no_sense_are_refused(parts: tuple[float, ...], words: str):
    with pytest.raises(DataError, match=words):
        SplitOptions(parts=parts)


def test_more_than_there_is_cannot_be_asked_for():
    with pytest.raises(DataError, match="asks for 12 structures, and 10 are usable"):
        divide(10, SplitOptions(parts=(10, 2)))
