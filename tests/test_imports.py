"""Who may be imported first, what is replaced and what is not: every case in a fresh interpreter."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import escaip_fairchem

STANDINS = Path(escaip_fairchem.__file__).parent / "plugin" / "standins"
needs_absence = pytest.mark.skipif(
    any(
        spec is not None and spec.origin is not None and not spec.origin.startswith(str(STANDINS))
        for spec in map(importlib.util.find_spec, ("torch_scatter", "torch_sparse"))
    ),
    reason="torch_scatter or torch_sparse is really installed here",
)


def run(program: str, *, path: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program, given as code or as a file's path, with `path` in front of everything that can be imported."""
    folders = [str(folder) for folder in (path, Path(escaip_fairchem.__file__).parents[1]) if folder is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    arguments = [program] if program.endswith(".py") else ["-c", program]
    process = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if check:
        assert process.returncode == 0, process.stderr
    return process


def test_importing_the_package_is_light():
    out = run(
        "import sys, escaip_fairchem; "
        "heavy = {'torch', 'numpy', 'fairchem', 'torch_geometric', 'ase', 'yaml'}; "
        "print(heavy & {name.partition('.')[0] for name in sys.modules})"
    )
    assert out.stdout.strip() == "set()"


def test_the_core_works_where_nothing_but_torch_can_be_imported():
    run(
        "import sys\n"
        "for name in ('fairchem', 'fairchem.core', 'torch_geometric', 'torch_scatter', 'torch_sparse', 'ase'):\n"
        "    sys.modules[name] = None\n"
        "import escaip_fairchem.nn\n"
        "assert not [m for m in sys.modules if m.startswith(('escaip_fairchem.plugin', 'escaip_fairchem.data'))]\n"
    )


def test_importing_the_package_anew_replaces_its_hooks():
    """As coverage does: it imports the package to find its folder, and forgets it again."""
    run(
        "import sys, escaip_fairchem\n"
        "for name in [name for name in sys.modules if name.startswith('escaip_fairchem')]:\n"
        "    del sys.modules[name]\n"
        "import escaip_fairchem, fairchem.core\n"
        "ours = [f for f in sys.meta_path if type(f).__module__ == 'escaip_fairchem._imports']\n"
        "assert len(ours) == 2, sys.meta_path\n"
        "assert 'escaip_fairchem.plugin' in sys.modules\n"
    )


ALL_STOCK_MODELS = """
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
setup_imports()
for name in ("schnet", "gemnet_oc", "dimenetplusplus", "painn", "equiformer_v2", "escn", "hydra"):
    registry.get_model_class(name)
"""
CHECK = """
import torch_geometric.typing
assert not torch_geometric.typing.WITH_TORCH_SCATTER
assert not torch_geometric.typing.WITH_TORCH_SPARSE
assert torch_geometric.typing.SparseTensor.__module__ == "torch_geometric.typing"
from fairchem.core.common.registry import registry
assert registry.get_model_class("escaip").__module__ == "escaip_fairchem.plugin.models"
import escaip_fairchem, torch_scatter, torch_sparse
assert "standins" in torch_scatter.__file__ and "standins" in torch_sparse.__file__
import fairchem.core
assert "PluginAfterHost" not in repr(fairchem.core.__spec__) + repr(fairchem.core.__loader__)
"""


@needs_absence
@pytest.mark.parametrize(
    "first",
    [
        f"import escaip_fairchem, fairchem.core{ALL_STOCK_MODELS}",
        "import torch_geometric, escaip_fairchem, fairchem.core",
        "import escaip_fairchem, torch_sparse, torch_geometric, fairchem.core",
        "from escaip_fairchem import EScAIP",
    ],
)
def test_fairchem_imports_and_knows_our_names_whoever_comes_first(first: str):
    run(first + CHECK)


@needs_absence
def test_the_standins_are_there_for_others_too_and_only_once_asked():
    run(
        "import sys, escaip_fairchem\n"
        "assert 'torch_scatter' not in sys.modules\n"
        "import torch_scatter, torch_scatter.utils, torch_sparse\n"
        "assert torch_scatter.__version__ == torch_sparse.__version__ == '0.0.0+escaip.standin'\n"
        "import torch_geometric.typing as typing\n"
        "assert not typing.WITH_TORCH_SCATTER and not typing.WITH_TORCH_SPARSE\n"
        "import pickle; assert pickle.loads(pickle.dumps(torch_scatter.scatter)) is torch_scatter.scatter\n"
    )


@needs_absence
def test_they_are_served_without_torch_geometric_as_well():
    run(
        "import sys; sys.modules['torch_geometric'] = None\n"
        "import escaip_fairchem, torch_scatter; assert 'standins' in torch_scatter.__file__"
    )


@needs_absence
def test_names_beyond_the_standins_say_what_to_install():
    run(
        "import sys; sys.modules['torch_geometric'] = None\n"
        "import escaip_fairchem, torch_scatter\n"
        "assert not hasattr(torch_scatter, 'scatter_softmax')\n"
        "for statement, project in [\n"
        "    ('from torch_scatter import scatter_softmax', 'torch-scatter'),\n"
        "    ('import torch_scatter.composite', 'torch-scatter'),\n"
        "    ('from torch_sparse import matmul', 'torch-sparse'),\n"
        "    ('from torch_sparse import SparseStorage', 'torch-sparse'),\n"
        "]:\n"
        "    try: exec(statement)\n"
        "    except ImportError as error: assert f'pip install {project}' in str(error), error\n"
        "    else: raise AssertionError(statement)\n"
    )


def real_packages(folder: Path) -> None:
    """Install packages of the two names, independent of ours: the stand-ins' code, without its way of saying no."""
    for name in ("torch_scatter", "torch_sparse"):
        shutil.copytree(STANDINS / name, folder / name)
        for file in (folder / name).glob("*.py"):
            text = file.read_text().partition("\ndef __getattr__")[0].partition("\ndef _uncovered")[0]
            lines = [line for line in text.splitlines() if "escaip_fairchem." not in line]
            file.write_text("\n".join(lines))


def test_installed_packages_are_left_alone(tmp_path: Path):
    real_packages(tmp_path)
    out = run(
        "import escaip_fairchem, torch_scatter, torch_sparse, torch_geometric.typing as t; "
        "print(torch_scatter.__file__, torch_sparse.__file__, t.WITH_TORCH_SCATTER)",
        path=tmp_path,
    )
    assert out.stdout.split() == [
        *(str(tmp_path / n / "__init__.py") for n in ("torch_scatter", "torch_sparse")),
        "True",
    ]


def test_a_host_that_was_imported_earlier_gets_the_plugin_at_once(tmp_path: Path):
    real_packages(tmp_path)
    run(
        "import sys, fairchem.core\n"
        "assert not [name for name in sys.modules if name.startswith('escaip_fairchem.')]\n"
        "import escaip_fairchem\n"
        "assert 'escaip_fairchem.plugin' in sys.modules\n"
        "from fairchem.core.common.registry import registry\n"
        "assert registry.get_model_class('escaip')",
        path=tmp_path,
    )


def test_a_broken_installation_is_reported_and_not_replaced(tmp_path: Path):
    (tmp_path / "torch_scatter").mkdir()
    (tmp_path / "torch_scatter" / "__init__.py").write_text("raise OSError('undefined symbol: _ZN3c10')")
    process = run("import escaip_fairchem, fairchem.core", path=tmp_path, check=False)
    assert process.returncode == 1
    assert process.stderr.strip().endswith("OSError: undefined symbol: _ZN3c10")


@needs_absence
def test_an_error_inside_the_plugin_is_not_swallowed():
    process = run(
        "import sys, escaip_fairchem; sys.modules['escaip_fairchem.plugin.models'] = None; import fairchem.core",
        check=False,
    )
    assert process.returncode == 1
    assert "escaip_fairchem.plugin.models" in process.stderr.splitlines()[-1]


def test_installing_twice_changes_nothing():
    run(
        "import sys, escaip_fairchem\nfrom escaip_fairchem import _imports\n"
        "before = list(sys.meta_path); _imports.install()\n"
        "assert [type(finder) for finder in sys.meta_path] == [type(finder) for finder in before]\n"
        "assert isinstance(before[-1], _imports.StandInFinder) and isinstance(before[0], _imports.HostFinder)"
    )


@needs_absence
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_child_processes_see_the_same(tmp_path: Path, method: str):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, escaip_fairchem\n"
        "def target(cls, results):\n"
        "    import torch_scatter\n"
        "    from fairchem.core.common.registry import registry\n"
        "    results.put((cls.__name__, torch_scatter.__version__, registry.get_model_class('escaip').__name__))\n"
        "if __name__ == '__main__':\n"
        "    from fairchem.core.datasets import LmdbDataset\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    results = context.Queue()\n"
        "    process = context.Process(target=target, args=(LmdbDataset, results)); process.start()\n"
        "    print(*results.get(timeout=120)); process.join(); assert process.exitcode == 0\n"
    )
    out = run(str(program))
    assert out.stdout.split() == ["LmdbDataset", "0.0.0+escaip.standin", "EScAIP"]


def test_public_names_are_listed_and_unknown_ones_refused():
    assert set(escaip_fairchem.__all__) <= set(dir(escaip_fairchem))
    with pytest.raises(AttributeError, match="no attribute 'Escaip'"):
        _ = escaip_fairchem.Escaip
