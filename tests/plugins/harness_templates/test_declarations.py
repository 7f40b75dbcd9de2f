"""The declarations of the package: light to import, and every option is a parameter of the factory."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from harness_templates import harness_templates

NAMES = sorted(harness_templates())


def test_all_built_in_templates_are_declared():
    general = ["alpaca", "chatml", "instruction_zh", "jinja", "tokenizer"]
    families = ["deepseek", "gemma", "llama2", "llama3", "mistral", "phi", "qwen", "vicuna", "zephyr"]
    assert sorted(general + families) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_options_are_the_parameters_without_a_second_default(name, built_in):
    parameters = inspect.signature(type(built_in(name))).parameters
    assert list(parameters) == list(harness_templates()[name].options)
    assert all(parameter.default is parameter.empty for parameter in parameters.values())


@pytest.mark.parametrize("name", NAMES)
def test_options_are_described_and_have_defaults(name):
    for schema in harness_templates()[name].options.values():
        assert schema["description"].endswith(".")
        assert "default" in schema


@pytest.mark.parametrize("name", NAMES)
def test_the_name_equals_the_declared_name(name, built_in):
    assert built_in(name).name == name


def test_declarations_and_factories_import_nothing_heavy():
    code = (
        "import sys, importlib, harness_templates as package\n"
        "for c in package.harness_templates().values(): importlib.import_module(c.factory.split(':')[0])\n"
        "sys.exit(', '.join({'torch', 'numpy', 'transformers', 'tokenizers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
