"""Registers the plugin with BasicSR as soon as ``basicsr`` is imported, and not before."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

REGISTRATION = "adabm_basicsr.bridge.registration"


def install_hook() -> None:
    """Register now if ``basicsr`` is imported already, else upon its import.

    Calling it again changes nothing.
    """
    if sys.modules.get("basicsr") is not None:
        if REGISTRATION not in sys.modules:
            _register()
    elif not any(isinstance(finder, _BasicSRFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BasicSRFinder())


def _register() -> None:
    from adabm_basicsr.bridge import patches

    patches.after_import()
    importlib.import_module(REGISTRATION)


class _BasicSRFinder(importlib.abc.MetaPathFinder):
    """Finds ``basicsr`` as everyone else does, and wraps its loader."""

    def __init__(self) -> None:
        self.searching = False

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "basicsr" or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _BasicSRLoader(spec.loader)
        return spec


class _BasicSRLoader(importlib.abc.Loader):
    """Runs the work-arounds before ``basicsr`` is executed and the registration after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from adabm_basicsr.bridge import patches

        patches.before_import()
        self.loader.exec_module(module)
        _register()
