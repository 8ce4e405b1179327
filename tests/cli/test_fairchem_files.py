"""Configuration files that cannot be read are reported before anything slow is imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from escaip_fairchem.cli import config_files
from escaip_fairchem.cli.config_files import check_yaml, locate_config
from escaip_fairchem.cli.fairchem import main
from escaip_fairchem.errors import ConfigError


def test_a_missing_file_is_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["main", "--config-yml", "none.yml"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("fairchem main: error: --config-yml none.yml: no such configuration file")
    assert err.endswith(f"; those that come with the package are in {config_files.shipped_configs()}/configs\n")
    assert "Traceback" not in out + err


def test_debug_shows_the_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["main", "--debug", "--config-yml", "none.yml"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_it_costs_no_import_of_fairchem(tmp_path):
    import fairchem_runs

    code = "import sys; from escaip_fairchem.cli.fairchem import main; main(['main', '--config-yml=none.yml']); "
    process = fairchem_runs.run(
        ["-c", code + "print({'torch', 'fairchem', 'torch_geometric'} & set(sys.modules))"], cwd=tmp_path
    )
    assert process.stdout.strip() == "set()", process.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {name: x", "not valid YAML"),
        ("- a\n- b\n", "holds list where keys"),
        ("", "holds NoneType where keys"),
        ("includes: base.yml\n", "has to be a list"),
        ("includes: [base.yml]\n", "includes base.yml, which is neither"),
        ("includes: [config.yml]\n", "includes itself"),
        ("model: {name: schnet}\nb: \xe9\n".encode("latin-1"), "cannot be read"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str | bytes, message: str):
    file = tmp_path / "config.yml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        check_yaml(file)


def test_errors_in_included_files_name_both(tmp_path: Path):
    (tmp_path / "base.yml").write_text("a: [1")
    (tmp_path / "config.yml").write_text("includes: [base.yml]")
    with pytest.raises(ConfigError, match=r"base\.yml: not valid YAML, included from .*config\.yml"):
        check_yaml(tmp_path / "config.yml")


def test_shipped_files_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    shipped = tmp_path / "package"
    (shipped / "configs" / "oc20").mkdir(parents=True)
    (shipped / "configs" / "oc20" / "escaip_2m.yml").write_text("a: 1")
    monkeypatch.setattr(config_files, "_PACKAGE", shipped)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    relative = Path("configs/oc20/escaip_2m.yml")
    assert locate_config(relative) == shipped / relative
    with pytest.raises(ConfigError, match=r"did you mean 'configs/oc20/escaip_2m.yml'"):
        locate_config(Path("configs/oc20/escaip_2M.yml"))
    (elsewhere / "configs" / "oc20").mkdir(parents=True)
    (elsewhere / relative).write_text("a: 2")
    assert locate_config(relative) == relative
    with pytest.raises(ConfigError, match="is a folder"):
        locate_config(Path("configs"))


def test_words_reach_upstream_unchanged(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fairchem", "something else"])
    with pytest.raises(SystemExit) as stop:
        main(["--mode", "nonsense", "--config-yml", "x.yml"])
    assert stop.value.code == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err
