import importlib
import json
import subprocess
import sys

import jsonschema
import pytest
from harness_sources import harness_sources

COMPONENTS = harness_sources()
GIVEN = {"hub": {"name": "some/rows"}, "lm_eval": {"task": "some_task"}}


def test_all_built_in_sources_are_declared():
    assert sorted(COMPONENTS) == ["arrow", "csv", "hub", "json", "jsonl", "lm_eval", "parquet", "text"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_each_factory_takes_exactly_its_declared_options(name):
    component = COMPONENTS[name]
    module, _, factory = component.factory.partition(":")
    defaults = {key: option["default"] for key, option in component.options.items() if "default" in option}
    options = {**defaults, **GIVEN.get(name, {"path": "x"})}
    assert set(options) == set(component.options) == set(defaults) | set(component.required)
    assert getattr(importlib.import_module(module), factory)(**options).records


@pytest.mark.parametrize("name", COMPONENTS)
def test_each_option_has_a_description_and_a_valid_schema(name):
    for key, option in COMPONENTS[name].options.items():
        assert option["description"], key
        jsonschema.Draft7Validator.check_schema(option)
        if "default" in option:
            jsonschema.validate(option["default"], option)


def test_declarations_and_factories_import_nothing_heavy():
    code = (
        "import importlib, sys, json, harness_sources\n"
        "for one in harness_sources.harness_sources().values():\n"
        "    importlib.import_module(one.factory.partition(':')[0])\n"
        "heavy = {'torch', 'datasets', 'pyarrow', 'numpy', 'fsspec', 'aiohttp'}\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules} & heavy)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
