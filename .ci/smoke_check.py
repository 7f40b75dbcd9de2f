"""Check that the installed wheel works without torch: nesting, sources of JSON, and statistics."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import harness_sources.json_sources as json_sources

import harness
from harness.utils import json_depth

assert "site-packages" in (harness.__file__ or ""), f"{harness.__file__} is not the installed wheel"
assert importlib.util.find_spec("torch") is None, "torch is installed, so nothing is shown"

for depth in (99, 100, 101, 3000, 100_000):
    try:
        json_depth.load_json("[" * depth + "]" * depth)
        is_read = True
    except json_depth.JsonDepthError:
        is_read = False
    assert is_read == (depth <= json_depth.MAX_JSON_DEPTH), f"depth {depth}: read {is_read}"

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": ' + "[" * 5000 + "]" * 5000 + "}\n", encoding="utf-8")
    good, bad = json_sources.JsonlSource(str(file), {}).records()
    assert good.data == {"a": 1}
    assert json_depth.NESTED_TOO_DEEP in bad.what

assert "torch" not in sys.modules
print(f"smoke: Python {sys.version.split()[0]} reads JSON to the same depth")
