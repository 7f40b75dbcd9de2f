"""Avalanche's EWC as an independent oracle, where the wheel is there: `pip install --no-deps avalanche-lib==0.6.0`.

Its requirements (torchvision, wandb, tensorboard, ...) have no part in the one function that is wanted, and conflict
with ours; what is missing of them is replaced by empty shells while it is imported, and only then.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

SHELLS = ("torchvision", "torch.utils.tensorboard", "tensorboard", "torchmetrics", "pytorchcv", "gputil", "GPUtil")
SHELLS += (
    "gdown",
    "quadprog",
    "qpsolvers",
    "wandb",
    "lvis",
    "pycocotools",
    "higher",
    "librosa",
    "torchaudio",
    "ctrl",
    "learn2learn",
)


def _shell(name):
    members = {
        "__init__": lambda self, *arguments, **options: None,
        "__init_subclass__": classmethod(lambda cls, **options: None),
        "__class_getitem__": classmethod(lambda cls, item: cls),
    }
    return type(name, (), members)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty shell for each module of `SHELLS`."""

    def find_spec(self, name, path=None, target=None):
        if any(name == shell or name.startswith(f"{shell}.") for shell in SHELLS):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []

        def attribute(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return _shell(name)

        module.__getattr__ = attribute
        return module

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def _shells():
    finder = _Finder()
    before = set(sys.modules)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if any(name == shell or name.startswith(f"{shell}.") for shell in SHELLS):
                del sys.modules[name]


def compute_importances():
    """`EWCPlugin.compute_importances` of an instance: (model, criterion, optimizer, dataset, device, batch size)."""
    with _shells():
        from avalanche.training.plugins import EWCPlugin
    return EWCPlugin(ewc_lambda=1.0).compute_importances


def is_there():
    return importlib.util.find_spec("avalanche") is not None
