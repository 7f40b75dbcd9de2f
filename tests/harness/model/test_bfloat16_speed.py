"""The recommendation of bfloat16 on CPUs that are faster with it; nothing here depends on this CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch  # noqa: F401 - the ratio is measured only where torch is loaded

from harness.errors import HarnessError
from harness.model import bfloat16_speed


@pytest.fixture(autouse=True)
def cpu_only(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.delenv("HARNESS_BFLOAT16_RATIO")
    monkeypatch.setattr(bfloat16_speed, "may_have_cuda", lambda: False)
    return tmp_path


@pytest.mark.parametrize(("ratio", "is_recommended"), [(2.94, True), (1.5, True), (1.49, False), (0.002, False)])
def test_bfloat16_is_recommended_from_one_and_a_half_times_the_speed(ratio, is_recommended, monkeypatch):
    monkeypatch.setattr(bfloat16_speed, "measure_ratio", lambda: ratio)
    text = bfloat16_speed.bfloat16_recommendation("auto")
    assert (text is not None) is is_recommended
    if is_recommended:
        assert f"{ratio:.1f} times as fast as float32" in text
        assert 'train.precision "bfloat16"' in text


def test_only_auto_without_a_gpu_gets_a_recommendation(monkeypatch):
    monkeypatch.setattr(bfloat16_speed, "measure_ratio", lambda: 3.0)
    assert bfloat16_speed.bfloat16_recommendation("float32") is None
    assert bfloat16_speed.bfloat16_recommendation("bfloat16") is None
    monkeypatch.setattr(bfloat16_speed, "may_have_cuda", lambda: True)
    assert bfloat16_speed.bfloat16_recommendation("auto") is None


def test_the_ratio_is_measured_once_for_a_cpu_a_version_and_a_number_of_threads(cpu_only, monkeypatch):
    measured = []
    monkeypatch.setattr(bfloat16_speed, "measure_ratio", lambda: measured.append(1) or 2.0)
    assert bfloat16_speed.bfloat16_ratio() == bfloat16_speed.bfloat16_ratio() == 2.0
    assert len(measured) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "97")
    bfloat16_speed.bfloat16_ratio()
    assert len(measured) == len(list((cpu_only / "bfloat16-speed").glob("*.json"))) == 2
    for file in (cpu_only / "bfloat16-speed").glob("*.json"):
        file.write_text("{")  # damaged: measured again
    bfloat16_speed.bfloat16_ratio()
    assert len(measured) == 3


def test_the_environment_replaces_the_measurement(monkeypatch):
    monkeypatch.setenv("HARNESS_BFLOAT16_RATIO", "1.9")
    assert "1.9 times" in bfloat16_speed.bfloat16_recommendation("auto")
    monkeypatch.setenv("HARNESS_BFLOAT16_RATIO", "off")
    with pytest.raises(HarnessError, match=r"HARNESS_BFLOAT16_RATIO: 'off' is not a number; set it to 0"):
        bfloat16_speed.bfloat16_recommendation("auto")


def test_without_torch_only_the_cache_is_read(cpu_only):
    code = (
        "import sys; from harness.model.bfloat16_speed import *; from harness.model.bfloat16_speed import _cpu_digest; "
        "first = bfloat16_ratio(); file = cache_dir.cache_root() / 'bfloat16-speed' / f'{_cpu_digest()}.json'; "
        "file.parent.mkdir(); file.write_text('{\"ratio\": 2.5}'); "
        "print(json.dumps([first, bfloat16_ratio(), 'torch' in sys.modules]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == [None, 2.5, False]


def test_a_cpu_is_measured_in_both_formats():
    assert 0 < bfloat16_speed.measure_ratio() < 100
