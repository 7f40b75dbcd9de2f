"""The built-in templates: prompt formats, one module per family."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_templates import (
    alpaca,
    chatml,
    deepseek,
    gemma,
    jinja,
    llama,
    mistral,
    phi,
    qwen,
    vicuna,
    zephyr,
)

__all__ = ["harness_templates"]

COMPONENT_MODULES = (alpaca, chatml, qwen, llama, mistral, gemma, phi, zephyr, vicuna, deepseek, jinja)


@hookimpl
def harness_templates() -> dict[str, Component]:
    """Return the declarations of the built-in templates, by name."""
    return {name: component for module in COMPONENT_MODULES for name, component in module.COMPONENTS.items()}
