"""The command line: help, validation, exit codes and listings; bad input is one line on the error stream."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.paths import ROOT

from harness import registry
from harness.cli import main
from harness.errors import HarnessError, ManyErrors, RunError

COMMANDS = [
    "run",
    "validate",
    "plan",
    "check",
    "preview",
    "gate",
    "evaluate",
    "score",
    "report",
    "rate",
    "plugins",
    "schema",
    "compare",
    "track",
]
MIXING = {
    "share": 0.1, "unit": "loss_tokens", "source": None, "weights": None, "temperature": None, "upsample": False,
    "resample": False, "answers": "data", "prompts": "data",
    "writing": {"prompts": None, "max_new_tokens": 256, "temperature": 1.0, "top_p": 1.0, "max_repetition": 0.2,
                "min_log_probability": -5.0},
}  # fmt: skip
SPECS = ROOT / "specs"


@pytest.fixture(autouse=True)
def _no_third_party_plugins(monkeypatch):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")


@pytest.fixture
def run_harness(capsys):
    """Run a command in this process; return its exit code, output and error stream."""

    def run_harness(*arguments):
        try:
            code = main.main([str(argument) for argument in arguments])
        except SystemExit as system_exit:
            code = system_exit.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_harness


@pytest.fixture
def write_spec(tmp_path):
    """Write a valid spec of built-in components that `change` may modify; each of its data files has one row."""

    def source(name):
        return {"jsonl": {"path": f"{name}.jsonl"}}

    document = {
        "name": "small",
        "model": {"path": "./model"},
        "template": "chatml",
        "sources": {name: source(name) for name in ("desk", "desk_heldout", "chat", "chat_heldout")},
        "mode": {"mixed": {"domain": ["desk"], "general": ["chat"]}},
        "mitigations": "mixing",
        "train": {"learning_rate": 0.01},
        "evaluate": {
            "desk": {"source": "desk_heldout", "metrics": "chrf"},
            "chat": {"source": "chat_heldout", "role": "general", "metrics": "chrf"},
        },
    }
    file = tmp_path / "spec.json"
    for name in document["sources"]:
        row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")

    def write_spec(change=lambda document: None):
        change(document)
        file.write_text(json.dumps(document, indent=2), encoding="utf-8")
        return file

    return write_spec


def get_error_line(result):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    (line,) = err.splitlines()
    assert line.startswith("harness: ")
    return line.removeprefix("harness: ")


# -- help -------------------------------------------------------------------------------------------------------------


def test_command_is_installed_and_prints_its_version():
    script = Path(sys.executable).with_name("harness")
    output = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert output == f"harness {version('harness-sft')}\n"


def test_help_lists_every_command(run_harness):
    code, out, _ = run_harness("--help")
    assert code == 0
    assert [command for command in COMMANDS if f"\n    {command} " not in out] == []


def test_without_a_command_the_help_is_printed(run_harness):
    code, out, err = run_harness()
    assert (code, err) == (0, "")
    assert out.startswith("usage: harness")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(run_harness, command):
    code, out, _ = run_harness(command, "--help")
    assert code == 0
    assert f"example: harness {command}" in " ".join(out.split())


@pytest.mark.parametrize("arguments", [["rnu"], ["validate"], ["run", "x.json", "--quiet", "--json"]])
def test_invalid_command_line_exits_with_2(run_harness, arguments):
    code, out, err = run_harness(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: harness")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preview", "x.json", "--rows", "two"], "--rows: 'two' is not an integer"),
        (["preview", "x.json", "--rows", "0"], "--rows: 0 is below 1"),
        (["compare", "x", "--items", "-1"], "--items: -1 is below 0"),
    ],
)
def test_invalid_number_is_reported_with_option_and_value(run_harness, arguments, message):
    code, out, err = run_harness(*arguments)
    assert (code, out) == (2, "")
    assert err.endswith(f"error: argument {message}\n")


# -- validate ---------------------------------------------------------------------------------------------------------


def test_valid_spec_is_reported_with_its_stages_and_suites(run_harness, write_spec):
    file = write_spec()
    code, out, err = run_harness("validate", file, "--set", "train.learning_rate=2e-5")
    assert (code, err) == (0, "")
    assert out == f"{file} is valid: 1 stage(s) (mixed), 2 suite(s)\n"


def test_warning_is_on_the_error_stream_and_the_spec_is_valid(run_harness, write_spec):
    code, out, err = run_harness("validate", write_spec())
    assert code == 0
    assert "is valid" in out
    assert err == "warning: train.learning_rate is 0.01; usual is 1e-05 to 5e-05\n"


def test_filled_spec_can_be_printed_and_validated_again(run_harness, write_spec, tmp_path):
    _, first, _ = run_harness("validate", write_spec(), "--filled", "--set", "seed=3")
    filled = tmp_path / "filled.json"
    filled.write_text(first, encoding="utf-8")
    code, second, _ = run_harness("validate", filled, "--filled")
    assert code == 0
    assert second == first
    assert json.loads(first)["seed"] == 3
    assert json.loads(first)["mitigations"] == {"mixing": MIXING}


# -- bad input --------------------------------------------------------------------------------------------------------


def set_keys(**keys):
    return lambda document: document.update(keys)


INVALID_SPECS = {
    "unknown key": (set_keys(trian={}), [], ":{row}:3 spec: unknown key 'trian'; did you mean 'train'?"),
    "unknown option": (
        set_keys(mitigations={"mixing": {"shar": 0.1}}),
        [],
        ":{row}:7 mitigations.mixing: unknown key 'shar'; did you mean 'share'?",
    ),
    "unknown component": (
        set_keys(template="chatmll"),
        [],
        ":{row}:3 template: no plugin provides 'chatmll'; did you mean 'chatml'?",
    ),
    "wrong type": (
        set_keys(seed="zero"),
        [],
        ':{row}:3 seed: "zero" is not an integer; write an integer: '
        "the one seed that every random choice of the run is "
        "derived from",
    ),
    "missing source": (
        set_keys(evaluate={"s": {"source": "desc", "metrics": "chrf"}}),
        [],
        ":{row}:7 evaluate.s.source: there is no source 'desc'; did you mean 'desk'?",
    ),
    "a suite on a trained source": (
        set_keys(evaluate={"s": {"source": "desk", "metrics": "chrf"}}),
        [],
        ":{row}:7 evaluate.s.source: the suite 's' would evaluate the model on training rows of 'desk'; "
        'give sources.desk.jsonl "held_out": 0.1, or name a source of held-out rows',
    ),
    "nothing general to mix": (
        set_keys(mode={"domain": {"sources": ["desk"]}}),
        [],
        ":{row}:3 mitigations.mixing: the stage 'domain' has no general source; "
        "name one in mitigations.mixing.source, or use the mode 'mixed'",
    ),
}


@pytest.mark.parametrize("kind", INVALID_SPECS)
@pytest.mark.parametrize("command", ["validate", "run", "plan", "preview"])
def test_bad_input_is_one_line_with_file_line_and_column(run_harness, write_spec, kind, command):
    change, overrides, expected = INVALID_SPECS[kind]
    file = write_spec(change)
    line = get_error_line(run_harness(command, file, *overrides))
    assert line.startswith(f"{file}:")
    row = int(line.removeprefix(f"{file}:").partition(":")[0])
    assert line == f"{file}{expected.format(row=row)}"
    key = expected.split(" ")[1].rstrip(":").split(".")[-1]
    line_of_file = file.read_text().splitlines()[row - 1]
    assert f'"{key}"' in line_of_file or expected.split("'")[1] in line_of_file


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lerning_rate=1", "train: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ("train.epochs", "an override is key=value; e.g. --set train.learning_rate=1e-5"),
        (f"train.max_length={2**63}", f"train.max_length: {2**63} is out of range; it must be at most 2147483647"),
        ("train.batch_size=65537", "train.batch_size: 65537 is out of range; it must be at most 65536"),
        ("train.epochs=0", "train.epochs: 0 is out of range; it must be above 0"),
        ("evaluate.desk.source=desc", "there is no source 'desc'; did you mean 'desk'?"),
    ],
)
def test_invalid_override_is_one_line_that_names_the_override(run_harness, write_spec, override, message):
    assert get_error_line(run_harness("validate", write_spec(), "--set", override)) == f"--set {override}: {message}"


def test_invalid_json_is_one_line_with_file_line_and_column(run_harness, tmp_path):
    file = tmp_path / "spec.json"
    file.write_text('{"name": "x",\n "model": nul}', encoding="utf-8")
    line = get_error_line(run_harness("validate", file))
    assert line.startswith(f"{file}:2:11: this is not JSON: 'nul}}'; ")


def test_missing_file_is_one_line(run_harness):
    assert (
        get_error_line(run_harness("validate", "no/such.json"))
        == "no/such.json: the file does not exist; check the path"
    )


def test_all_errors_are_reported_together_in_one_line_each(run_harness, write_spec):
    code, _, err = run_harness("validate", write_spec(set_keys(sed=1, seed="x", output=3)))
    assert code == 2
    assert len(err.splitlines()) == 3
    assert all(line.startswith("harness: ") for line in err.splitlines())


# -- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (HarnessError("x", "is bad", "fix it"), 2, "harness: x: is bad; fix it\n"),
        (ManyErrors([HarnessError("x", "1"), HarnessError("y", "2")]), 2, "harness: x: 1\nharness: y: 2\n"),
        (RunError("run", "stopped", "try again"), 1, "harness: run: stopped; try again\n"),
        (KeyboardInterrupt(), 130, "harness: interrupted\n"),
    ],
)
def test_each_kind_of_error_has_its_exit_code(run_harness, monkeypatch, error, code, err):
    def raise_error():
        raise error

    monkeypatch.setattr(registry, "discover_plugins", raise_error)
    assert run_harness("plugins") == (code, "", err)


def test_an_unexpected_exception_is_one_line_with_the_file_of_its_traceback(run_harness, monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "discover_plugins", lambda: 1 / 0)
    code, out, err = run_harness("plugins")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("harness: this is a fault of harness: ZeroDivisionError: division by zero; please report it")
    (file,) = (tmp_path / "cache" / "tracebacks").iterdir()
    assert str(file) in line
    assert "in discover_plugins" in file.read_text() or "ZeroDivisionError" in file.read_text()


def test_what_a_plugin_prints_does_not_break_json(run_harness, monkeypatch):
    discover = registry.discover_plugins

    def print_and_discover():
        print("Welcome to my plugin!")
        return discover()

    monkeypatch.setattr(registry, "discover_plugins", print_and_discover)
    code, out, err = run_harness("plugins", "--json")
    assert code == 0
    assert "metrics" in json.loads(out)
    assert err == "Welcome to my plugin!\n"


@pytest.mark.parametrize("arguments", [["plugins", "--kind", "modes"], ["schema"]])
def test_closed_output_pipe_is_not_an_error(arguments):
    command = [sys.executable, "-m", "harness", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


# -- plugins and schema -----------------------------------------------------------------------------------------------


def test_plugins_lists_every_component_by_kind_with_its_summary(run_harness):
    code, out, _ = run_harness("plugins")
    assert code == 0
    plugin_registry = registry.discover_plugins()
    listing = " ".join(out.split())
    for kind, components in plugin_registry.components.items():
        assert f"{kind} name from what it is" in listing
        assert [name for name in components if f" {name} harness-sft " not in listing] == []
    assert "[INST] … [/INST]" in listing


def test_plugins_can_be_listed_by_kind_and_as_json(run_harness):
    _, out, _ = run_harness("plugins", "--kind", "modes", "--json")
    plugins = json.loads(out)
    assert set(plugins) == {"modes", "distributions", "broken"}
    assert set(plugins["modes"]) == {"general", "domain", "mixed", "continual", "curriculum"}
    assert plugins["modes"]["mixed"]["distribution"] == "harness-sft"
    assert set(plugins["modes"]["mixed"]["options"]) == {"domain", "general"}
    assert plugins["broken"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plugins", "--new", "metric", "x", "--json"], "harness plugins --json: has no effect with --new"),
        (["plugins", "--new", "metric", "x", "--check", "rouge"], "harness plugins --check: has no effect with --new"),
        (["plugins", "--check", "rouge", "--kind", "metrics"], "harness plugins --kind: has no effect with --check"),
        (["plugins", "--folder", "x"], "harness plugins --folder: has no effect without --new"),
        (["run", "x.json", "--allow-plugin-change"], "--allow-plugin-change: has no effect without --resume"),
    ],
)
def test_an_option_without_effect_is_refused(run_harness, arguments, message):
    code, _, error = run_harness(*arguments)
    assert code == 2
    assert message in error


def test_schema_can_be_printed_or_written(run_harness, tmp_path):
    _, out, _ = run_harness("schema")
    assert json.loads(out)["title"] == "harness spec"
    assert run_harness("schema", "--output", tmp_path / "s.json") == (0, "", "")
    assert (tmp_path / "s.json").read_text(encoding="utf-8") == out


def test_schema_that_cannot_be_written_is_one_line(run_harness, tmp_path):
    line = get_error_line(run_harness("schema", "--output", tmp_path / "no" / "s.json"))
    assert line == f"{tmp_path}/no/s.json: cannot write it: No such file or directory; name another file"


def test_evaluating_a_spec_that_does_not_exist_is_an_error_about_the_file(capsys):
    assert main.main(["evaluate", "nosuch.json"]) == 2
    assert capsys.readouterr().err == "harness: nosuch.json: the file does not exist; check the path\n"


def test_errors_about_arguments_neither_control_the_terminal_nor_repeat_long_ones(capsys):
    for arguments in (["\x1b[31mred"], ["run", "--" + "x" * 5000], ["compare", "--\x1b]0;t\x07"]):
        with pytest.raises(SystemExit) as caught:
            main.main(arguments)
        assert caught.value.code == 2
        printed = capsys.readouterr().err
        assert "\x1b" not in printed
        assert len(printed) < 3000


@pytest.mark.parametrize(
    "override",
    ["name=a\0b", "name=\udcff", "model.path=" + "x" * 5000, "x" * 5000 + "=1", "train." + "y" * 5000 + "=1"],
)
def test_errors_about_overrides_repeat_little_of_them(capsys, override):
    assert main.main(["validate", str(SPECS / "mixed_sft.json"), "--set", override, "--set", "train.steps=x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("harness: ") and len(line) < 700 for line in lines)


def test_a_name_that_no_file_can_have_is_refused(capsys):
    assert main.main(["validate", str(SPECS / "mixed_sft.json"), "--set", "name=" + "n" * 300]) == 2
    assert "is not a valid name; use at most 100 letters" in capsys.readouterr().err


def test_a_spec_of_another_format_names_the_version_that_reads_it(capsys):
    for number, remedy in (("1", "harness-sft==0.2.0"), ("99", "--upgrade harness-sft")):
        assert main.main(["validate", str(SPECS / "mixed_sft.json"), "--set", f"format={number}"]) == 2
        assert remedy in capsys.readouterr().err


def test_remote_code_needs_the_agreement_of_the_spec(capsys, monkeypatch):
    monkeypatch.setenv("HARNESS_TRUST_REMOTE_CODE", "0")
    assert main.main(["validate", str(SPECS / "mixed_sft.json"), "--trust-remote-code"]) == 2
    assert "--trust-remote-code: the spec does not set model.trust_remote_code" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["chat"], ["generate", "prompts.jsonl"], ["export", "--to", "merged"]])
def test_commands_on_a_run_need_its_agreement_to_remote_code(tmp_path, capsys, monkeypatch, words):
    monkeypatch.setenv("HARNESS_TRUST_REMOTE_CODE", "0")
    (tmp_path / "spec.json").write_text(json.dumps({"model": {"path": "a/b", "trust_remote_code": False}}))
    (tmp_path / "report.json").write_text("{}")
    command, *others = words
    assert main.main([command, str(tmp_path), *others, "--trust-remote-code"]) == 2
    assert "--trust-remote-code: the spec does not set model.trust_remote_code" in capsys.readouterr().err


def test_a_spec_that_has_no_end_is_refused(capsys):
    assert main.main(["validate", "/dev/zero"]) == 2
    assert "not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"x {'.'.join(['eyJ' + 'a' * 250, 'b' * 200, 'c' * 200])}", "x (left out)"),
        (f"s3://user:{'Ab1' * 200}@host/path", "s3://host/path"),
    ],
)
def test_a_secret_is_removed_before_a_word_is_cut(text, said, capsys, monkeypatch):
    def refuse(*_):
        raise HarnessError("spec.json", text)

    monkeypatch.setattr(main, "_call_command", refuse)
    assert main.main(["runs"]) == 2
    assert capsys.readouterr().err == f"harness: spec.json: {said}\n"
