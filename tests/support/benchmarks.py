"""Import the programs of `benchmarks/`, which import each other by name."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from support.paths import ROOT


def load_benchmark(name: str, *shared: str) -> ModuleType:
    """Return the module of `benchmarks/<name>.py`. shared: the modules of that folder that it imports."""
    for module_name in (*shared, name):
        if module_name not in sys.modules:
            spec = importlib.util.spec_from_file_location(module_name, ROOT / "benchmarks" / f"{module_name}.py")
            assert spec is not None
            assert spec.loader is not None
            sys.modules[module_name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
            spec.loader.exec_module(sys.modules[module_name])
    return sys.modules[name]
