"""The cache is shown by kind, and pruned by age and by size, the least recently used first."""

from __future__ import annotations

import os
import re
import time

import pytest
from support.paths import ROOT

from harness.cli.main import main
from harness.utils import cache_contents

DAY = 24 * 3600


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a model of 3 kB that is 40 days old, tokens of 1 kB that are 2 days old, and an old lock."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    now = time.time()
    for name, size, days in (("models/m/weights", 3000, 40), ("rows/a.rows", 1000, 2), ("models/m.lock", 0, 3)):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
        os.utime(file, (now - days * DAY,) * 2)
    os.utime(tmp_path / "models" / "m", (now - 40 * DAY,) * 2)
    return tmp_path


def test_all_kinds_are_listed_with_their_size(cache, capsys):
    assert main(["cache"]) == 0
    printed = capsys.readouterr().out
    assert "models" in printed
    assert "3.0 kB" in printed
    assert "4.0 kB" in printed
    assert (cache / "models" / "m").exists()


def test_pruning_by_age_deletes_what_was_not_used_and_leftovers(cache):
    assert main(["cache", "--prune", "--older-than", "30"]) == 0
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == ["a.rows"]


def test_pruning_by_size_deletes_the_least_recently_used_first(cache):
    assert main(["cache", "--prune", "--max-size", "1.5kB"]) == 0
    assert not (cache / "models" / "m").exists()
    assert (cache / "rows" / "a.rows").exists()


def test_without_prune_nothing_is_deleted(cache, capsys):
    assert main(["cache", "--max-size", "0"]) == 0
    assert "--prune would delete 3 entries" in capsys.readouterr().out
    assert (cache / "rows" / "a.rows").exists()


@pytest.mark.parametrize("arguments", [["--kind", "nope"], ["--max-size", "much"]])
def test_a_wrong_option_is_one_line(cache, capsys, arguments):
    assert main(["cache", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_entries_that_are_new_and_small_are_kept():
    entry = cache_contents.CacheEntry("rows", None, 10, time.time(), True)
    assert cache_contents.select_entries([entry], older_than=DAY, max_bytes=10) == []


def test_every_folder_that_the_code_writes_is_a_kind():
    files = [file for folder in ("harness", "plugins") for file in (ROOT / folder).rglob("*.py")]
    texts = [file.read_text(encoding="utf-8") for file in files]
    folders = {name for text in texts for name in re.findall(r'cache_root\(\) / "([\w-]+)"', text)}
    assert {"models", "tools"} <= folders
    assert folders <= cache_contents.KINDS.keys()
