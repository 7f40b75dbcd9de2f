"""The command line: each command does its one thing, and bad input is one line on the error stream."""

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
    "plugins",
    "schema",
    "compare",
]
MIXING = {
    "share": 0.1, "unit": "loss_tokens", "source": None, "weights": None, "temperature": None, "upsample": False,
    "resample": False,
}  # fmt: skip
SPECS = ROOT / "specs"


@pytest.fixture(autouse=True)
def _only_ours(monkeypatch):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")


@pytest.fixture
def harness(capsys):
    """Runs a command in this process and gives its exit code, output and error stream."""

    def harness(*arguments):
        try:
            code = main.main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return harness


@pytest.fixture
def spec(tmp_path):
    """A valid spec of built-in components, with data files that are not there."""

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

    def write(change=lambda document: None):
        change(document)
        file.write_text(json.dumps(document, indent=2), encoding="utf-8")
        return file

    return write


def one_error(result):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    (line,) = err.splitlines()
    assert line.startswith("harness: ")
    return line.removeprefix("harness: ")


# -- help -------------------------------------------------------------------------------------------------------------


def test_the_command_is_installed_and_tells_its_version():
    script = Path(sys.executable).with_name("harness")
    shown = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown == f"harness {version('harness-sft')}\n"


def test_help_lists_every_command(harness):
    code, out, _ = harness("--help")
    assert code == 0
    assert [command for command in COMMANDS if f"\n    {command} " not in out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example_of_it(harness, command):
    code, out, _ = harness(command, "--help")
    assert code == 0
    assert f"example: harness {command}" in " ".join(out.split())


@pytest.mark.parametrize("arguments", [[], ["rnu"], ["validate"], ["run", "x.json", "--quiet", "--json"]])
def test_a_command_line_that_is_none_exits_with_2(harness, arguments):
    code, out, err = harness(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: harness")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["preview", "x.json", "--rows", "two"], "--rows: 'two' is not an integer"),
        (["preview", "x.json", "--rows", "0"], "--rows: 0 is below 1"),
        (["compare", "x", "--items", "-1"], "--items: -1 is below 0"),
    ],
)
def test_a_number_that_makes_no_sense_is_told_as_a_reader_would(harness, arguments, said):
    code, out, err = harness(*arguments)
    assert (code, out) == (2, "")
    assert err.endswith(f"error: argument {said}\n")


# -- validate ---------------------------------------------------------------------------------------------------------


def test_a_valid_spec_is_said_to_be_valid_with_its_stages_and_suites(harness, spec):
    file = spec()
    code, out, err = harness("validate", file, "--set", "train.learning_rate=2e-5")
    assert (code, err) == (0, "")
    assert out == f"{file} is valid: 1 stage(s) (mixed), 2 suite(s)\n"


def test_a_warning_goes_to_the_error_stream_and_the_spec_stays_valid(harness, spec):
    code, out, err = harness("validate", spec())
    assert code == 0
    assert "is valid" in out
    assert err == "warning: train.learning_rate is 0.01; usual is 1e-05 to 5e-05\n"


def test_the_filled_spec_can_be_printed_and_validated_again(harness, spec, tmp_path):
    _, first, _ = harness("validate", spec(), "--filled", "--set", "seed=3")
    filled = tmp_path / "filled.json"
    filled.write_text(first, encoding="utf-8")
    code, second, _ = harness("validate", filled, "--filled")
    assert code == 0
    assert second == first
    assert json.loads(first)["seed"] == 3
    assert json.loads(first)["mitigations"] == {"mixing": MIXING}


# -- bad input --------------------------------------------------------------------------------------------------------


def change(**keys):
    return lambda document: document.update(keys)


BAD = {
    "unknown key": (change(trian={}), [], ":{row}:3 spec: unknown key 'trian'; did you mean 'train'?"),
    "unknown option": (
        change(mitigations={"mixing": {"shar": 0.1}}),
        [],
        ":{row}:7 mitigations.mixing: unknown key 'shar'; did you mean 'share'?",
    ),
    "unknown component": (
        change(template="chatmll"),
        [],
        ":{row}:3 template: no plugin provides 'chatmll'; did you mean 'chatml'?",
    ),
    "wrong type": (
        change(seed="zero"),
        [],
        ':{row}:3 seed: "zero" is not an integer; write an integer: the one seed that every random choice of the run is '
        "derived from",
    ),
    "missing source": (
        change(evaluate={"s": {"source": "desc", "metrics": "chrf"}}),
        [],
        ":{row}:7 evaluate.s.source: there is no source 'desc'; did you mean 'desk'?",
    ),
    "a suite on a trained source": (
        change(evaluate={"s": {"source": "desk", "metrics": "chrf"}}),
        [],
        ":{row}:7 evaluate.s.source: the suite 's' would evaluate the model on training rows of 'desk'; "
        'give sources.desk.jsonl "held_out": 0.1, or name a source of held-out rows',
    ),
    "nothing general to mix": (
        change(mode={"domain": {"sources": ["desk"]}}),
        [],
        ":{row}:3 mitigations.mixing: the stage 'domain' has no general source; "
        "name one in mitigations.mixing.source, or use the mode 'mixed'",
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("command", ["validate", "run", "plan", "preview"])
def test_bad_input_is_one_line_with_file_line_and_column(harness, spec, kind, command):
    changed, overrides, expected = BAD[kind]
    file = spec(changed)
    line = one_error(harness(command, file, *overrides))
    assert line.startswith(f"{file}:")
    row = int(line.removeprefix(f"{file}:").partition(":")[0])
    assert line == f"{file}{expected.format(row=row)}"
    key = expected.split(" ")[1].rstrip(":").split(".")[-1]
    said = file.read_text().splitlines()[row - 1]
    assert f'"{key}"' in said or expected.split("'")[1] in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lerning_rate=1", "train: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ("train.epochs", "an override is key=value; e.g. --set train.learning_rate=1e-5"),
        (f"train.max_length={2**63}", f"train.max_length: {2**63} is out of range; it must be at most 2147483647"),
        ("train.batch_size=65537", "train.batch_size: 65537 is out of range; it must be at most 65536"),
        ("train.epochs=0", "train.epochs: 0 is out of range; it must be above 0"),
        ("evaluate.desk.source=desc", "there is no source 'desc'; did you mean 'desk'?"),
    ],
)
def test_a_bad_override_is_one_line_that_names_it(harness, spec, override, said):
    assert one_error(harness("validate", spec(), "--set", override)) == f"--set {override}: {said}"


def test_wrong_json_is_one_line_with_file_line_and_column(harness, tmp_path):
    file = tmp_path / "spec.json"
    file.write_text('{"name": "x",\n "model": nul}', encoding="utf-8")
    line = one_error(harness("validate", file))
    assert line.startswith(f"{file}:2:11: this is not JSON: 'nul}}'; ")


def test_a_missing_file_is_one_line(harness):
    assert one_error(harness("validate", "no/such.json")) == "no/such.json: the file does not exist; check the path"


def test_all_that_is_wrong_is_told_at_once_a_line_each(harness, spec):
    code, _, err = harness("validate", spec(change(sed=1, seed="x", output=3)))
    assert code == 2
    assert len(err.splitlines()) == 3
    assert all(line.startswith("harness: ") for line in err.splitlines())


def test_two_distributions_with_one_name_stop_every_command(harness, spec, monkeypatch):
    def discover():
        raise HarnessError("plugins", "the distributions 'a' and 'b' both bring a mode 'x'", "uninstall one of them")

    monkeypatch.setattr(registry, "discover_plugins", discover)
    for command in (["validate", spec()], ["plugins"], ["schema"]):
        assert one_error(harness(*command)).startswith("plugins: the distributions 'a' and 'b' both bring")


# -- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (HarnessError("x", "is bad", "mend it"), 2, "harness: x: is bad; mend it\n"),
        (ManyErrors([HarnessError("x", "1"), HarnessError("y", "2")]), 2, "harness: x: 1\nharness: y: 2\n"),
        (RunError("run", "stopped", "try again"), 1, "harness: run: stopped; try again\n"),
        (KeyboardInterrupt(), 130, "harness: interrupted\n"),
    ],
)
def test_each_way_to_end_has_its_exit_code(harness, monkeypatch, error, code, err):
    def discover():
        raise error

    monkeypatch.setattr(registry, "discover_plugins", discover)
    assert harness("plugins") == (code, "", err)


def test_a_bug_keeps_its_traceback(harness, monkeypatch):
    monkeypatch.setattr(registry, "discover_plugins", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        harness("plugins")


@pytest.mark.parametrize("arguments", [["plugins", "--kind", "modes"], ["schema"]])
def test_a_reader_who_leaves_early_is_no_error(arguments):
    command = [sys.executable, "-m", "harness", *arguments]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    started.stdout.close()
    assert started.wait(60) == 0
    assert started.stderr.read() == b""
    started.stderr.close()


# -- plugins and schema -----------------------------------------------------------------------------------------------


def test_plugins_lists_every_component_by_kind_with_its_summary(harness):
    code, out, _ = harness("plugins")
    assert code == 0
    found = registry.discover_plugins()
    shown = " ".join(out.split())
    for kind, components in found.components.items():
        assert f"{kind} name from what it is" in shown
        assert [name for name in components if f" {name} harness-sft " not in shown] == []
    assert "[INST] … [/INST]" in shown


def test_plugins_can_be_listed_by_kind_and_as_json(harness):
    _, out, _ = harness("plugins", "--kind", "modes", "--json")
    listed = json.loads(out)
    assert set(listed) == {"modes", "broken"}
    assert set(listed["modes"]) == {"general", "domain", "mixed", "continual"}
    assert listed["modes"]["mixed"]["distribution"] == "harness-sft"
    assert set(listed["modes"]["mixed"]["options"]) == {"domain", "general"}
    assert listed["broken"] == []


def test_the_schema_can_be_printed_or_written(harness, tmp_path):
    _, out, _ = harness("schema")
    assert json.loads(out)["title"] == "harness spec"
    assert harness("schema", "--output", tmp_path / "s.json") == (0, "", "")
    assert (tmp_path / "s.json").read_text(encoding="utf-8") == out


def test_a_schema_that_cannot_be_written_is_one_line(harness, tmp_path):
    line = one_error(harness("schema", "--output", tmp_path / "no" / "s.json"))
    assert line == f"{tmp_path}/no/s.json: cannot write it: No such file or directory; name another file"
