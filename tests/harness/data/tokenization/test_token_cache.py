"""The cache of tokens: the same question has the same answer, any other is asked anew, and nothing breaks it."""

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

TOKENIZER = tokenization_cases.BUILT["byte_level"]
EXAMPLES = [tokenization_cases.row(f"Question {n}?", f"Answer {n}.", number=n) for n in range(1, 30)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def asked(examples=EXAMPLES, template=None, tokenizer=TOKENIZER, max_length=64, key="content", source="s"):
    template = template or ChatML(system=None)
    return tokenize_corpus(examples, source, template, tokenizer, max_length, content_digest=key)


def test_a_second_run_has_the_same_rows_from_the_cache():
    first, seen = asked(), []
    second = tokenize_corpus(
        EXAMPLES, "s", ChatML(None), TOKENIZER, 64, content_digest="content", progress=lambda *state: seen.append(state)
    )
    assert (first.from_cache, second.from_cache) == (False, True)
    assert second.rows == first.rows
    assert list(second.rows) == list(first.rows)
    assert second.example_indices.tolist() == first.example_indices.tolist()
    assert second.tokens_cut.tolist() == first.tokens_cut.tolist()
    assert second.rows_verified == first.rows_verified == len(EXAMPLES)
    assert seen == [("tokenise", 29, 29, "s, from the cache", "rows")]


def test_a_hit_looks_at_no_example():
    asked()
    broken = [None] * len(EXAMPLES)
    assert asked(examples=broken).from_cache


def test_the_name_of_the_source_is_not_part_of_the_question():
    asked()
    found = asked(source="renamed")
    assert found.from_cache
    assert found.rows.source_names == ("renamed",)


def grown():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_tokens(["Question"])
    return tokenizer


def merged_otherwise():
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_str(
        TOKENIZER.backend_tokenizer.to_str().replace('"ignore_merges":false', '"ignore_merges":true')
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def ends_otherwise():
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
        {"tokenizer": grown()},
        {"tokenizer": merged_otherwise()},
        {"tokenizer": ends_otherwise()},
    ],
    ids=["content", "length", "options", "template", "tokens", "merges", "end of sequence"],
)
def test_any_change_is_a_miss(change):
    asked()
    assert asked().from_cache
    assert not asked(**change).from_cache
    assert asked().from_cache


def test_versions_and_our_own_code_are_part_of_the_question(monkeypatch):
    asked()
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints.importlib.metadata, "version", lambda name: "99")
        assert not asked().from_cache
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "FINGERPRINTED_MODULES", (*fingerprints.FINGERPRINTED_MODULES, "errors"))
        assert not asked().from_cache
    assert asked().from_cache
    own = {
        name for name, _ in fingerprints._module_digests(["harness.data.tokenization.tokenize"], within="harness.data.")
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
def package(tmp_path, monkeypatch, request):
    """Writes a package of a template and a module that it uses, and imports it anew."""
    name = f"made_{abs(hash(request.node.name))}"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")

    def write(number=1, more=""):
        (tmp_path / name / "words.py").write_text(WORDS.replace("{number}", str(number)))
        (tmp_path / name / "format.py").write_text(TEMPLATE.replace("{package}", name) + more)
        for known in [one for one in sys.modules if one.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, known)
        importlib.invalidate_caches()
        return importlib.import_module(f"{name}.format").Mine

    return write


def test_code_and_options_of_a_third_partys_template_are_part_of_the_question(package):
    mine = package()
    asked(template=mine(depth=1))
    assert asked(template=mine(depth=1)).from_cache
    assert not asked(template=mine(depth=2)).from_cache
    assert asked(template=package()(depth=1)).from_cache
    assert not asked(template=package(more="# changed\n")(depth=1)).from_cache
    assert not asked(template=package(number=2)(depth=1)).from_cache  # of a module that it uses
    assert asked(template=package()(depth=1)).from_cache


def test_a_template_that_cannot_be_told_from_another_is_not_cached_and_says_so(package):
    template = package()(depth=object())
    for _ in range(2):
        found = asked(template=template)
        assert not found.from_cache
        assert len(found.rows) == len(EXAMPLES)
        (warning,) = found.warnings
        assert warning == (
            "the tokens of 's' are not kept for the next run: the template mine: it holds a object, of which nobody "
            "can tell whether it is the same again"
        )


def test_code_that_is_in_no_file_is_not_identified():
    scope = {"Template": Template, "__name__": "typed_in"}
    exec("class Typed(Template):\n    pass", scope)
    with pytest.raises(NotFingerprintable, match="is in no file"):
        tokenization_fingerprint(scope["Typed"](), TOKENIZER)


def test_options_of_every_plain_kind_are_part_of_an_identity():
    import datetime
    import re

    template = ChatML(None)
    values = [None, 1, 1.0, "1", b"1", True, (1,), [1], {"a": 1}, {"a": 2}, {1}, re.compile("1"), re.compile("1", re.I)]
    values += [datetime.date(2024, 1, 1), Path("1"), datetime.date, len, SimpleNamespace.__init__]
    found = []
    for value in values:
        template.option = value
        found.append(tokenization_fingerprint(template, TOKENIZER))
    assert len(set(found)) == len(values)


def test_two_chat_templates_that_render_the_canonical_rows_alike_are_two():
    from harness_templates import harness_templates
    from harness_templates.jinja import JinjaTemplate

    defaults = {key: schema["default"] for key, schema in harness_templates()["jinja"].options.items()}
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    source += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    twins = [JinjaTemplate(**{**defaults, "template": text}) for text in (source, source + "{# other #}")]
    assert tokenization_fingerprint(twins[0], TOKENIZER) != tokenization_fingerprint(twins[1], TOKENIZER)
    assert tokenization_fingerprint(twins[0], TOKENIZER) == tokenization_fingerprint(
        JinjaTemplate(**{**defaults, "template": source}), TOKENIZER
    )


def entries(folder):
    return sorted(path for path in folder.iterdir() if path.suffix == ".rows")


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "folder"])
def test_a_damaged_entry_is_a_miss_and_written_anew(damage, folder):
    first = asked()
    (path,) = entries(folder)
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        changed = {"cut": whole[:-9], "changed": whole[:8] + b"\0\0\0\0" + whole[12:], "empty": b""}
        path.unlink()
        path.write_bytes(changed[damage])
    again = asked()
    assert not again.from_cache
    assert again.rows == first.rows
    if damage == "folder":
        assert "are not kept for the next run" in again.warnings[0]
    else:
        assert again.warnings == ()
        assert asked().from_cache


def test_a_cache_that_cannot_be_made_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    found = asked()
    assert len(found.rows) == len(EXAMPLES)
    (warning,) = found.warnings
    assert f"{tmp_path}/file/rows: Not a directory" in warning
    assert tokenize_corpus(EXAMPLES, "s", ChatML(None), TOKENIZER, 64).warnings == ()  # nothing was to be kept


def test_a_full_disk_is_told_and_the_run_goes_on(monkeypatch, folder):
    expected = asked()
    for path in entries(folder):
        path.unlink()
    real = os.write

    def write(file, data):
        if len(data) > 200:
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    found = asked()
    assert found.rows == expected.rows
    assert [warning.partition(":")[0] for warning in found.warnings] == [
        "the tokens of 's' are not kept for the next run",
        "the tokens of 's' are held in memory, the disk takes no more",
    ]
    assert entries(folder) == []
    del found
    assert [path for path in folder.iterdir() if path.suffix == ".part"] == []


def test_the_least_recently_used_entries_beyond_the_size_go(monkeypatch, folder):
    for key in "abc":
        asked(key=key)
    files = entries(folder)
    size = files[0].stat().st_size
    for age, path in enumerate(files):
        os.utime(path, (time.time() - 1000 - age,) * 2)
    for key in "ab":
        assert asked(key=key).from_cache  # which makes them the most recently used
    monkeypatch.setattr(token_cache, "MAX_CACHE_BYTES", 3 * size + 100)
    asked(key="d")
    assert len(entries(folder)) == 3
    assert [asked(key=key).from_cache for key in "dab"] == [True] * 3
    monkeypatch.setattr(token_cache, "MAX_CACHE_BYTES", 0)
    kept = asked(key="e")
    assert len(entries(folder)) == 1
    assert len(kept.rows) == len(EXAMPLES)
    assert asked(key="e").from_cache


def test_what_a_dead_run_left_behind_goes_and_what_a_live_one_writes_stays(folder):
    asked()
    dead, alive = folder / ".dead.part", folder / ".alive.part"
    for path in (dead, alive):
        path.write_bytes(b"x")
    os.utime(dead, (time.time() - token_cache.STALE_AFTER_SECONDS - 10,) * 2)
    asked(key="other")
    assert not dead.exists()
    assert alive.exists()


def test_rows_outlive_their_entry(folder):
    first = asked()
    second = asked()
    expected = list(first.rows)
    for path in entries(folder):
        path.unlink()
    assert list(first.rows) == expected
    assert list(second.rows) == expected


TWO = """
import runpy, sys
made = runpy.run_path(sys.argv[1])
from harness_templates.chatml import ChatML
from harness.data.tokenization.tokenize import tokenize_corpus
examples = [made["row"](f"Question {n}?", f"Answer {n}.", number=n) for n in range(1, 30)]
for _ in range(8):
    found = tokenize_corpus(examples, "s", ChatML(None), made["BUILT"]["byte_level"], 64, content_digest=sys.argv[2])
    assert len(list(found.rows)) == 29 and not found.warnings
    from harness.data.tokenization import token_cache
    for path in token_cache.token_cache_folder().glob("*.rows"):
        path.unlink(missing_ok=True)
"""


def test_two_runs_at_once_do_each_other_no_harm(folder):
    made = str(ROOT / "tests" / "support" / "tokenization_cases.py")
    running = [subprocess.Popen([sys.executable, "-c", TWO, made, "same"]) for _ in range(2)]
    assert [one.wait(120) for one in running] == [0, 0]
    assert [path for path in folder.iterdir() if path.suffix == ".part"] == []
