"""Options that all evaluations share."""

from __future__ import annotations

import argparse

import pytest

from escaip_fairchem.cli import evaluate

WORDS = {
    "metrics": ["model.pt", "val=data"],
    "submission": ["model.pt", "id=data", "--out", "file.npz"],
    "rotation": ["model.pt", "in.xyz"],
    "relax": ["model.pt", "in.xyz", "out"],
    "dynamics": ["model.pt", "in.xyz", "out"],
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser()
    evaluate.add_parser(top.add_subparsers())
    return top


@pytest.mark.parametrize("command", WORDS)
def test_every_evaluation_is_told_in_one_way_where_to_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", command, *WORDS[command]]
    assert parser().parse_args(words).cpu is False  # on the GPU, where there is one
    assert parser().parse_args([*words, "--cpu"]).cpu is True
    assert parser().parse_args([*words, "--trust"]).trust is True
    with pytest.raises(SystemExit):
        parser().parse_args([*words, "--device", "cuda"])
    assert "--device" in capsys.readouterr().err


def test_the_list_above_is_whole() -> None:
    (action,) = (one for one in parser()._subparsers._group_actions)  # type: ignore[union-attr]
    (commands,) = (one for one in action.choices["evaluate"]._actions if isinstance(one, argparse._SubParsersAction))
    assert set(commands.choices) == set(WORDS)
