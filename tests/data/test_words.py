"""Words of many structures: numbered, put together, and small, however long one of them is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_cases import spice_group, write_spice

from escaip_fairchem.data import sources
from escaip_fairchem.data.collection import collect, groups_for_split
from escaip_fairchem.data.labels import LabelOptions
from escaip_fairchem.data.published_sets import SpiceOptions
from escaip_fairchem.data.sources import find_files, plan_chunks
from escaip_fairchem.data.splits import SplitOptions, divide
from escaip_fairchem.data.staging import StagingOptions, load_staged, stage_chunk
from escaip_fairchem.data.words import Words

OPTIONS = SpiceOptions(selection="all").convert_options()


def test_words_are_numbered_in_their_order():
    words = Words.of(["water", "", "amino", "water"])
    assert words.known == ("", "amino", "water")
    assert words.number.tolist() == [2, 0, 1, 2]
    assert words.counts() == {"": 1, "amino": 1, "water": 2}
    assert words.is_word("water").tolist() == [True, False, False, True]
    assert not words.is_word("wat").any()
    assert words.take(np.array([3, 1])).counts() == {"": 1, "water": 1}
    assert len(Words.of([])) == 0


def test_lots_are_put_together_and_numbered_anew():
    words = Words.concatenate([Words.of(["m", "z"]), Words.of([]), Words.of(["z", "a"]), Words.of(["m"])])
    assert words.known == ("a", "m", "z")
    assert words.number.tolist() == [1, 2, 2, 0, 1]
    assert Words.concatenate([]).counts() == {}


@given(st.lists(st.text(max_size=4), max_size=20))
@settings(max_examples=50, deadline=None)
def test_they_survive_a_file_of_arrays(words: list[str]):
    original = Words.of(words)
    saved = {name: np.array(array) for name, array in original.arrays("x").items()}
    again = Words.from_arrays("x", saved)
    assert [again.known[number] for number in again.number] == words
    assert again.known == tuple(sorted(set(words)))


@given(
    groups=st.lists(st.integers(0, 12), min_size=1, max_size=80),
    seed=st.integers(0, 3),
    parts=st.sampled_from([(0.8, 0.1, 0.1), (0.1, 0.2, 0.7), (0.5, 0.5)]),
)
@settings(max_examples=100, deadline=None)
def test_numbers_are_divided_as_the_names_are(groups: list[int], seed: int, parts: tuple[float, ...]):
    names = [f"g{group}" for group in groups]
    options = SplitOptions(parts=parts, seed=seed)
    by_name = divide(len(names), options, np.array(names))
    by_number = divide(len(names), options, Words.of(names).number)
    assert {split: rows.tolist() for split, rows in by_name.items()} == {
        split: rows.tolist() for split, rows in by_number.items()
    }


def staged(folder: Path, smiles: list[str | None], monkeypatch: pytest.MonkeyPatch, frames: int = 1) -> Path:
    """A folder of what was read of a file with these molecules, in two chunks at least."""
    groups = {f"m{k:03}": spice_group(text, [6], frames=frames, seed=k) for k, text in enumerate(smiles)}
    for group in groups.values():
        del group["mbis_charges"]
    write_spice(folder / "s.hdf5", groups)
    monkeypatch.setattr(sources, "CHUNK_FRAMES", 1 + len(smiles) * frames // 2)
    return folder / "s.hdf5"


def read(file: Path, key: str) -> tuple[list[sources.Chunk], Path]:
    folder = file.parent / f"read by {key}"
    folder.mkdir()
    chunks = plan_chunks(find_files([str(file)], exclude=folder, form="spice"), form="spice")
    options = StagingOptions(LabelOptions(energy_key="formation_energy"), OPTIONS.limits, key)
    for chunk in chunks:
        stage_chunk(chunk, options=options, folder=folder)
    return chunks, folder


def test_one_long_name_costs_its_own_length_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Text in arrays would take 4 × 50,000 bytes for every one of 200 structures: 40 MB."""
    long = "C" * 50_000
    chunks, folder = read(
        staged(tmp_path, ["N" * (1 + k) for k in range(39)] + [long], monkeypatch, frames=5), "molecule"
    )
    assert len(chunks) == 2
    assert all((folder / f"chunk-{chunk.number:06d}.npz").stat().st_size < 1_000_000 for chunk in chunks)
    collection = collect(chunks, folder)
    groups = groups_for_split(collection, "molecule")
    assert collection.group.number.nbytes == groups.nbytes == 200 * 8
    assert long in collection.group.known
    assert len(set(groups.tolist())) == 40
    for split in divide(200, SplitOptions(), groups).values():
        assert all(np.isin(np.flatnonzero(groups == group), split).all() for group in set(groups[split].tolist()))


def test_groups_have_the_order_of_names_and_loose_structures_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    smiles = ["CC", None, "B", "CC", None, "CCC", None, "A", "B", None, "Z", None]
    chunks, folder = read(staged(tmp_path, smiles, monkeypatch), "smiles")
    collection = collect(chunks, folder)
    groups = groups_for_split(collection, "smiles")
    by_name = np.array([f"structure s.hdf5:{k}" if text is None else f"group {text}" for k, text in enumerate(smiles)])
    np.testing.assert_array_equal(
        np.unique(groups, return_inverse=True)[1].reshape(-1), np.unique(by_name, return_inverse=True)[1].reshape(-1)
    )
    shortened = collect(chunks, folder, limit=5)
    assert [shortened.group.known[number] for number in shortened.group.number] == ["CC", "", "B", "CC", ""]
    assert len(load_staged(folder, 0).group) + len(load_staged(folder, 1).group) == 12
