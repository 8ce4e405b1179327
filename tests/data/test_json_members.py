"""The outline of a JSON file agrees with the parser, wherever blocks begin and whatever strings hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from escaip_fairchem.data import json_members
from escaip_fairchem.data.json_members import BrokenJSONError, members

AWKWARD = {
    "plain": {"a": 1, "b": [1, {"c": 2}], "d": {"e": {"f": {}}}},
    'quote " and } and \\': {'"': '}"{', "\\": "\\\\", ":": "a:b[", "é": "é\u2028"},
    "empty": {},
    "array": [{"a": 1}, [], "]"],
    "scalar": 3.5,
    "null": None,
    "text": 'x"}{:\\',
    "last": {"x": [[[1.0, -2e-3]]], "y": {"z": "\\"}},
}


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_members_are_where_the_parser_finds_them(
    tmp_path: Path, block: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(json_members, "BLOCK_BYTES", block)
    path = tmp_path / "x.json"
    path.write_text(" \n" + json.dumps(AWKWARD, indent=indent) + "\n")
    content = path.read_bytes()
    found = list(members(path))
    assert [member.key for member in found] == list(AWKWARD)
    for member in found:
        value = AWKWARD[member.key]
        assert member.size == (len(value) if isinstance(value, dict) else 0)
        if isinstance(value, dict | list):
            assert json.loads(content[member.start : member.end]) == value
        else:
            assert member.start == member.end


def test_an_object_without_members_is_no_error(tmp_path: Path):
    (tmp_path / "x.json").write_text("{ }")
    assert list(members(tmp_path / "x.json")) == []


@pytest.mark.parametrize(
    ("text", "before", "message"),
    [
        ("", [], "it is empty"),
        ("[1]", [], "no JSON object: it begins with"),
        ('{"a": {"b": 1}, "c": {"d": [1', ["a"], "the file ends within 'c'"),
        ('{"a": {"b": 1}', [], "the file ends within 'a'"),
        ('{"a": {"b": 1}}, "c": 1}', ["a"], "goes on behind its object"),
        ("{: 1}", [], "no name stands before the colon"),
    ],
)
def test_what_is_broken_is_said_after_what_is_whole(tmp_path: Path, text: str, before: list[str], message: str):
    (tmp_path / "x.json").write_text(text)
    found = []
    with pytest.raises(BrokenJSONError, match=message):
        for member in members(tmp_path / "x.json"):
            found.append(member.key)
    assert found == before
