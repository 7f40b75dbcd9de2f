"""The token cache: equal inputs are hits, any change is a miss, and damage or a full disk is harmless."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness_templates.chatml import ChatML
from support import tokenization_cases
from support.paths import ROOT

from harness import Template
from harness.data.tokenization import fingerprints, token_cache
from harness.data.tokenization.fingerprints import NotFingerprintable, tokenization_fingerprint
from harness.data.tokenization.tokenize import tokenize_corpus

TOKENIZER = tokenization_cases.TOKENIZERS["byte_level"]
EXAMPLES = [tokenization_cases.build_conversation(f"Question {n}?", f"Answer {n}.", number=n) for n in range(1, 30)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def tokenize_cached(examples=EXAMPLES, template=None, tokenizer=TOKENIZER, max_length=64, key="content", source="s"):
    template = template or ChatML(system=None)
    return tokenize_corpus(examples, source, template, tokenizer, max_length, content_digest=key)


def test_second_run_loads_the_same_rows_from_the_cache():
    first, calls = tokenize_cached(), []
    second = tokenize_corpus(
        EXAMPLES,
        "s",
        ChatML(None),
        TOKENIZER,
        64,
        content_digest="content",
        progress=lambda *state: calls.append(state),
    )
    assert (first.from_cache, second.from_cache) == (False, True)
    assert second.rows == first.rows
    assert list(second.rows) == list(first.rows)
    assert second.example_indices.tolist() == first.example_indices.tolist()
    assert second.tokens_cut.tolist() == first.tokens_cut.tolist()
    assert second.rows_verified == first.rows_verified == len(EXAMPLES)
    assert calls == [("tokenize", 29, 29, "s, from the cache", "rows")]


def test_cache_hit_reads_no_example():
    tokenize_cached()
    no_examples = [None] * len(EXAMPLES)
    assert tokenize_cached(examples=no_examples).from_cache


def test_source_name_is_not_part_of_the_key():
    tokenize_cached()
    corpus = tokenize_cached(source="renamed")
    assert corpus.from_cache
    assert corpus.rows.source_names == ("renamed",)


def tokenizer_with_added_token():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_tokens(["Question"])
    return tokenizer


def tokenizer_with_ignored_merges():
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_str(
        TOKENIZER.backend_tokenizer.to_str().replace('"ignore_merges":false', '"ignore_merges":true')
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def tokenizer_with_other_eos():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


@pytest.mark.parametrize(
    "change",
    [
        {"key": "other content"},
        {"max_length": 63},
        {"template": ChatML(system="Be brief.")},
        {"template": tokenization_cases.Speakers()},
        {"tokenizer": tokenizer_with_added_token()},
        {"tokenizer": tokenizer_with_ignored_merges()},
        {"tokenizer": tokenizer_with_other_eos()},
    ],
    ids=["content", "length", "options", "template", "tokens", "merges", "end of sequence"],
)
def test_any_change_is_a_cache_miss(change):
    tokenize_cached()
    assert tokenize_cached().from_cache
    assert not tokenize_cached(**change).from_cache
    assert tokenize_cached().from_cache


def test_versions_and_code_of_harness_are_part_of_the_key(monkeypatch):
    tokenize_cached()
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints.importlib.metadata, "version", lambda name: "99")
        assert not tokenize_cached().from_cache
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "FINGERPRINTED_MODULES", (*fingerprints.FINGERPRINTED_MODULES, "errors"))
        assert not tokenize_cached().from_cache
    assert tokenize_cached().from_cache
    own = {
        name for name, _ in fingerprints.module_digests(["harness.data.tokenization.tokenize"], within="harness.data.")
    }
    expected = ("label_mask", "special_tokens", "byte_level", "rendering", "mask_verification")
    assert {f"harness.data.tokenization.{name}" for name in expected} <= own
    assert all(name.startswith("harness.data.") for name in own)


TEMPLATE = """
from harness import Template, Span
from {package}.words import END, Options

class Mine(Template):
    name = "mine"
    def __init__(self, **options):
        self.options = Options(options)
    def render(self, messages, tokenizer, *, add_generation_prompt=False):
        spans = []
        for message in messages:
            trained = message.role == "assistant"
            spans += [Span(message.role + ":\\n", markup=True), Span(message.content, trained)]
            spans.append(Span(END, trained, markup=True))
        return (*spans, *([Span("assistant:\\n", markup=True)] if add_generation_prompt else []))
    def stop_strings(self, tokenizer):
        return (END,)
"""
WORDS = """
class Options:
    def __init__(self, values):
        self.values = values
def unused():
    return {number}
END = "</s>"
"""


@pytest.fixture
def write_package(tmp_path, monkeypatch, request):
    """Return a function that writes a package of a template and a module it imports, and imports it again."""
    name = f"made_{abs(hash(request.node.name))}"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")

    def write(number=1, more=""):
        (tmp_path / name / "words.py").write_text(WORDS.replace("{number}", str(number)))
        (tmp_path / name / "format.py").write_text(TEMPLATE.replace("{package}", name) + more)
        for known in [module for module in sys.modules if module.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, known)
        importlib.invalidate_caches()
        return importlib.import_module(f"{name}.format").Mine

    return write


def test_code_and_options_of_a_third_party_template_are_part_of_the_key(write_package):
    template_class = write_package()
    tokenize_cached(template=template_class(depth=1))
    assert tokenize_cached(template=template_class(depth=1)).from_cache
    assert not tokenize_cached(template=template_class(depth=2)).from_cache
    assert tokenize_cached(template=write_package()(depth=1)).from_cache
    assert not tokenize_cached(template=write_package(more="# changed\n")(depth=1)).from_cache
    assert not tokenize_cached(template=write_package(number=2)(depth=1)).from_cache  # of a module that it imports
    assert tokenize_cached(template=write_package()(depth=1)).from_cache


def test_template_that_cannot_be_fingerprinted_is_not_cached_and_warns(write_package):
    template = write_package()(depth=object())
    for _ in range(2):
        corpus = tokenize_cached(template=template)
        assert not corpus.from_cache
        assert len(corpus.rows) == len(EXAMPLES)
        (warning,) = corpus.warnings
        assert warning == (
            "the tokens of 's' are not cached for the next run: the template mine: it holds a value of type object, "
            "which cannot be compared between runs"
        )


def test_code_outside_of_a_file_is_not_fingerprintable():
    scope = {"Template": Template, "__name__": "typed_in"}
    exec("class Typed(Template):\n    pass", scope)
    with pytest.raises(NotFingerprintable, match="is not in a file"):
        tokenization_fingerprint(scope["Typed"](), TOKENIZER)


def test_options_of_every_plain_type_are_part_of_the_fingerprint():
    import datetime
    import re

    template = ChatML(None)
    values = [None, 1, 1.0, "1", b"1", True, (1,), [1], {"a": 1}, {"a": 2}, {1}, re.compile("1"), re.compile("1", re.I)]
    values += [datetime.date(2024, 1, 1), Path("1"), datetime.date, len, SimpleNamespace.__init__]
    corpus = []
    for value in values:
        template.option = value
        corpus.append(tokenization_fingerprint(template, TOKENIZER))
    assert len(set(corpus)) == len(values)


def test_chat_templates_with_equal_renderings_have_different_fingerprints():
    from harness_templates import harness_templates
    from harness_templates.jinja import JinjaTemplate

    defaults = {key: schema["default"] for key, schema in harness_templates()["jinja"].options.items()}
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    source += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    templates = [JinjaTemplate(**{**defaults, "template": text}) for text in (source, source + "{# other #}")]
    assert tokenization_fingerprint(templates[0], TOKENIZER) != tokenization_fingerprint(templates[1], TOKENIZER)
    assert tokenization_fingerprint(templates[0], TOKENIZER) == tokenization_fingerprint(
        JinjaTemplate(**{**defaults, "template": source}), TOKENIZER
    )


def cache_entries(folder):
    return sorted(path for path in folder.iterdir() if path.suffix == ".rows")


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "folder"])
def test_damaged_entry_is_a_miss_and_is_rewritten(damage, folder):
    first = tokenize_cached()
    (path,) = cache_entries(folder)
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        changed = {"cut": content[:-9], "changed": content[:8] + b"\0\0\0\0" + content[12:], "empty": b""}
        path.unlink()
        path.write_bytes(changed[damage])
    second = tokenize_cached()
    assert not second.from_cache
    assert second.rows == first.rows
    if damage == "folder":
        assert "are not cached for the next run" in second.warnings[0]
    else:
        assert second.warnings == ()
        assert tokenize_cached().from_cache


def test_unwritable_cache_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    corpus = tokenize_cached()
    assert len(corpus.rows) == len(EXAMPLES)
    (warning,) = corpus.warnings
    assert f"{tmp_path}/file/rows: Not a directory" in warning
    assert tokenize_corpus(EXAMPLES, "s", ChatML(None), TOKENIZER, 64).warnings == ()  # the cache is not used


def test_full_disk_is_a_warning(monkeypatch, folder):
    expected = tokenize_cached()
    for path in cache_entries(folder):
        path.unlink()
    real = os.write

    def write(file, data):
        if len(data) > 200:
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    corpus = tokenize_cached()
    assert corpus.rows == expected.rows
    assert [warning.partition(":")[0] for warning in corpus.warnings] == [
        "the tokens of 's' are not cached for the next run",
        "the tokens of 's' are held in memory, the disk is not writable",
    ]
    assert cache_entries(folder) == []
    del corpus
    assert [path for path in folder.iterdir() if path.suffix == ".part"] == []


def test_least_recently_used_entries_beyond_the_size_are_removed(monkeypatch, folder):
    for key in "abc":
        tokenize_cached(key=key)
    files = cache_entries(folder)
    size = files[0].stat().st_size
    for age, path in enumerate(files):
        os.utime(path, (time.time() - 1000 - age,) * 2)
    for key in "ab":
        assert tokenize_cached(key=key).from_cache  # marks them as the most recently used
    monkeypatch.setattr(token_cache, "MAX_CACHE_BYTES", 3 * size + 100)
    tokenize_cached(key="d")
    assert len(cache_entries(folder)) == 3
    assert [tokenize_cached(key=key).from_cache for key in "dab"] == [True] * 3
    monkeypatch.setattr(token_cache, "MAX_CACHE_BYTES", 0)
    newest = tokenize_cached(key="e")
    assert len(cache_entries(folder)) == 1
    assert len(newest.rows) == len(EXAMPLES)
    assert tokenize_cached(key="e").from_cache


def test_stale_files_are_removed_and_recent_ones_stay(folder):
    tokenize_cached()
    stale, recent = folder / ".dead.part", folder / ".alive.part"
    for path in (stale, recent):
        path.write_bytes(b"x")
    os.utime(stale, (time.time() - token_cache.STALE_AFTER_SECONDS - 10,) * 2)
    tokenize_cached(key="other")
    assert not stale.exists()
    assert recent.exists()


def test_rows_outlive_their_entry(folder):
    first = tokenize_cached()
    second = tokenize_cached()
    expected = list(first.rows)
    for path in cache_entries(folder):
        path.unlink()
    assert list(first.rows) == expected
    assert list(second.rows) == expected


TWO_RUNS_SCRIPT = """
import runpy, sys
cases = runpy.run_path(sys.argv[1])
from harness_templates.chatml import ChatML
from harness.data.tokenization.tokenize import tokenize_corpus
examples = [cases["build_conversation"](f"Question {n}?", f"Answer {n}.", number=n) for n in range(1, 30)]
for _ in range(8):
    tokenizer = cases["TOKENIZERS"]["byte_level"]
    corpus = tokenize_corpus(examples, "s", ChatML(None), tokenizer, 64, content_digest=sys.argv[2])
    assert len(list(corpus.rows)) == 29 and not corpus.warnings
    from harness.data.tokenization import token_cache
    for path in token_cache.token_cache_folder().glob("*.rows"):
        path.unlink(missing_ok=True)
"""


def test_concurrent_runs_are_safe(folder):
    cases_file = str(ROOT / "tests" / "support" / "tokenization_cases.py")
    running = [subprocess.Popen([sys.executable, "-c", TWO_RUNS_SCRIPT, cases_file, "same"]) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert [path for path in folder.iterdir() if path.suffix == ".part"] == []
