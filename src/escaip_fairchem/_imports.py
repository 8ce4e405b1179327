"""Make ``fairchem.core`` importable, and complete, wherever this package is imported first.

fairchem-core 1.10 imports ``torch_scatter`` and ``torch_sparse`` before any plugin code of anybody runs, and knows a
model by its short name only after the module that registers it was imported. Hence two finders on ``sys.meta_path``:

* Last in line, it finds the pure-PyTorch stand-ins for the two packages when nothing else does: not installed means
  replaced, installed but broken means the error of the broken package.
* First in line, it sees ``fairchem.core`` being imported and has ``escaip_fairchem.plugin`` imported right after it; so
  with the other modules in ``GUESTS``.

Only the standard library is imported here, so that ``import escaip_fairchem`` stays light.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from escaip_fairchem.errors import EScAIPError, MissingDependencyError

HOST = "fairchem.core"
PLUGIN = "escaip_fairchem.plugin"
GUESTS = {
    HOST: PLUGIN,
    # Found by its short names wherever fairchem's model is, and imported no earlier, for that takes a while.
    f"{HOST}.models.equiformer_v2.equiformer_v2": f"{PLUGIN}.invariant_equiformer_v2",
}
"""Modules of this package by those of fairchem right after which they are imported."""
STANDINS = {"torch_scatter": "torch-scatter", "torch_sparse": "torch-sparse"}
_FOLDER = Path(__file__).parent / "plugin" / "standins"


class MissingAttributeError(EScAIPError, AttributeError):
    """A stand-in was asked for something that only the real package has.

    An ``AttributeError``, so that ``hasattr`` answers as usual. (Python cannot build a class that is an
    ``ImportError``, like `MissingDependencyError`, as well.)
    """


def missing_message(package: str, wanted: str) -> str:
    """Say what a stand-in does not cover and which package does.

    Args:
        package: Import name of the package that the stand-in stands in for.
        wanted: What was asked for, as the user would write it.
    """
    project = STANDINS[package]
    return (
        f"{wanted} is not covered by escaip_fairchem's pure-PyTorch stand-in for {package}, which is used because "
        f"{package} is not installed; install it with `pip install {project}` (it compiles C++)"
    )


def missing_attribute(package: str, name: str) -> AttributeError:
    """Build the error for an attribute that a stand-in module or one of its classes lacks.

    Args:
        package: Import name of the package that the stand-in stands in for.
        name: Dotted name of the attribute, package included.
    """
    if name.rpartition(".")[2].startswith("__"):
        return AttributeError(name)  # Python, torch.jit and inspect probe for such names all the time.
    return MissingAttributeError(missing_message(package, name))


class StandInFinder(MetaPathFinder):
    """Find the stand-ins for ``torch_scatter`` and ``torch_sparse``; to be asked after every other finder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for the two packages that nobody else found, and for nothing else.

        Args:
            fullname: Name of the module that is being imported.
            path: Where its package lies; not used, because the stand-ins have one place.
            target: The module that is being reloaded; not used.

        Raises:
            MissingDependencyError: ``from torch_scatter import x`` where the stand-in has no x.
        """
        package, _, rest = fullname.partition(".")
        if package not in STANDINS:
            return None
        if rest:
            # Asked only after the stand-in's own folder has been searched, hence neither a name nor a module of it.
            is_standin = _is_standin(sys.modules.get(package))
            if is_standin and not rest.rpartition(".")[2].startswith("__"):
                raise MissingDependencyError(missing_message(package, fullname), name=fullname)
            return None
        if _torch_geometric_is_probing():
            return None
        location = _FOLDER / package / "__init__.py"
        return importlib.util.spec_from_file_location(
            fullname, location, submodule_search_locations=[str(location.parent)]
        )


def _is_standin(module: ModuleType | None) -> bool:
    return module is not None and Path(getattr(module, "__file__", None) or "").parent.parent == _FOLDER


def _torch_geometric_is_probing() -> bool:
    """Tell whether the request comes from torch_geometric while it finds out what is installed.

    It looks for both packages once, when it is imported, and from then on calls into compiled parts of them that no
    stand-in has. So it has to have looked, and to have found nothing, before the stand-ins appear in ``sys.modules``.
    """
    if "torch_geometric" not in sys.modules:
        if importlib.util.find_spec("torch_geometric") is None:
            return False
        importlib.import_module("torch_geometric")
    module = sys.modules["torch_geometric"]
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class HostFinder(MetaPathFinder):
    """Have modules imported right after their hosts; to be asked before every other finder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Hand hosts to the finders behind this one, and wrap the loader that they name.

        Args:
            fullname: Name of the module that is being imported.
            path: Where its package lies, passed on.
            target: The module that is being reloaded, passed on.
        """
        if fullname not in GUESTS:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, HostFinder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _GuestAfterHost(spec.loader, GUESTS[fullname])
                return spec
        return None


class _GuestAfterHost(Loader):
    """Execute the host with its own loader, then import the guest."""

    def __init__(self, loader: Loader, guest: str) -> None:
        self._loader = loader
        self._guest = guest

    def __getattr__(self, name: str) -> object:
        # Everything else that a loader may offer (get_source, resources, …) is the original's.
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module looks as if the hook had never been there.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module(self._guest)


def install() -> None:
    """Put the two finders in place, once per process, and import the plugin if its host is there already.

    Where this module is imported a second time (coverage measurement forgets modules, notebooks reload them), the
    finders of the first time go: two generations would hand ``fairchem.core`` to each other without end.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_outdated(finder)]
    if not any(isinstance(finder, StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(StandInFinder())
    if not any(isinstance(finder, HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, HostFinder())
    host = sys.modules.get(HOST)
    if host is not None and not getattr(host.__spec__, "_initializing", False):
        importlib.import_module(PLUGIN)


def _is_outdated(finder: object) -> bool:
    """Whether a finder was made by another import of this module."""
    return type(finder).__module__ == __name__ and not isinstance(finder, (StandInFinder, HostFinder))
