"""Commands of plugins."""

from __future__ import annotations

import os
import sys
import types
from importlib.metadata import EntryPoint

import pytest

from harness import plugin_entry_points, registry
from harness.cli import main
from harness.interfaces.command import Command
from harness.registry import BrokenPlugin, Registry


@pytest.fixture
def install(monkeypatch):
    """Return a function that makes a module the command `greet` of the distribution `acme`."""

    def install(name="greet", **functions):
        module = types.ModuleType("acme_greet")
        vars(module).update({"add_arguments": lambda parser: parser.add_argument("who"), **functions})
        monkeypatch.setitem(sys.modules, "acme_greet", module)
        found = Registry()
        found.add_command(name, Command("Greet.", "acme_greet"), "acme")
        found.broken_plugins.append(BrokenPlugin("beta", "beta_plugin", "KeyError: 1"))
        monkeypatch.setattr(registry, "discover_plugins", lambda: found)
        monkeypatch.setattr(plugin_entry_points, "has_third_party_plugins", lambda: True)
        return found

    return install


def test_a_command_gets_its_arguments_and_returns_its_exit_code(install, capsys):
    def greet(arguments):
        print(f"hello {arguments.who}")
        return 3

    install(main=greet)
    assert main.main(["greet", "Ann"]) == 3
    assert capsys.readouterr().out == "hello Ann\n"


def test_the_arguments_of_a_command_are_its_own(install, capsys):
    """Also those with the names of arguments that the core has."""

    def add_arguments(parser):
        parser.add_argument("--json", action="store_true")
        parser.add_argument("--processes", type=int)
        parser.add_argument("--version", action="store_true")
        parser.add_argument("--main", dest="main")
        parser.add_argument("--name", dest="command_name")

    def greet(arguments):
        print(arguments.json, arguments.processes, arguments.version, arguments.main, arguments.command_name)

    install(add_arguments=add_arguments, main=greet)
    words = ["greet", "--json", "--processes", "7", "--version", "--main", "street", "--name", "Ann"]
    assert main.main(words) == 0
    assert capsys.readouterr().out == "True 7 True street Ann\n"


def test_a_command_can_disable_plugins(install, monkeypatch):
    monkeypatch.setenv(plugin_entry_points.DISABLE_VARIABLE, "gamma")
    seen = []
    install(main=lambda arguments: seen.append(os.environ[plugin_entry_points.DISABLE_VARIABLE]))
    assert main.main(["greet", "Ann", "--disable-plugin", "beta", "--disable-plugin=delta"]) == 0
    assert seen == ["gamma,beta,delta"]


def test_a_command_may_have_an_option_to_disable_plugins_itself(install):
    install(add_arguments=lambda parser: parser.add_argument("--disable-plugin"), main=lambda arguments: 4)
    assert main.main(["greet"]) == 4


def test_without_third_party_plugins_help_loads_no_plugin(monkeypatch, capsys):
    monkeypatch.setattr(plugin_entry_points, "has_third_party_plugins", lambda: False)
    monkeypatch.setattr(registry, "discover_plugins", lambda: pytest.fail("plugins are loaded"))
    with pytest.raises(SystemExit):
        main.main(["--help"])
    assert "commands" in capsys.readouterr().out


def test_a_command_without_an_exit_code_succeeds(install):
    install(main=lambda arguments: None)
    assert main.main(["greet", "Ann"]) == 0


def test_help_lists_the_command(install, capsys):
    install()
    with pytest.raises(SystemExit):
        main.main(["--help"])
    assert "greet" in capsys.readouterr().out


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("functions", "line"),
    [
        ({"main": lambda arguments: _raise(KeyError("z"))}, "command 'greet' of acme, main: KeyError: 'z'"),
        ({"main": lambda arguments: "ok"}, "command 'greet' of acme, main: returned a str, not an exit code"),
        ({"add_arguments": lambda parser: 1 / 0}, "command 'greet' of acme, add_arguments: ZeroDivisionError: "),
        ({}, "command 'greet' of acme, main: AttributeError: module 'acme_greet' has no attribute 'main'"),
    ],
    ids=["raises", "wrong result", "arguments", "no main"],
)
def test_a_command_that_fails_is_named_in_one_line(install, capsys, functions, line):
    install(**functions)
    assert main.main(["greet", "Ann"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"harness: {line}")
    assert all(each.startswith("harness: traceback: ") for each in lines[1:])


def test_a_module_that_cannot_be_imported_is_named(install, capsys, monkeypatch):
    install()
    monkeypatch.setitem(sys.modules, "acme_greet", None)
    assert main.main(["greet", "Ann"]) == 1
    assert capsys.readouterr().err.startswith("harness: command 'greet' of acme, acme_greet: ModuleNotFoundError: ")


def test_a_built_in_command_keeps_its_name_and_loads_no_plugin(install, monkeypatch, capsys):
    install("schema", main=lambda arguments: 7)
    with pytest.raises(SystemExit):
        main.main(["--help"])
    assert "warning: harness schema is the built-in command, not that of acme" in capsys.readouterr().err
    monkeypatch.setattr(registry, "discover_plugins", lambda: pytest.fail("plugins are loaded"))
    with pytest.raises(SystemExit):
        main.main(["schema", "--help"])


def test_an_unknown_command_names_the_plugins_that_failed_to_load(install, capsys):
    install()
    with pytest.raises(SystemExit):
        main.main(["wave"])
    text = "harness: a plugin that may provide 'wave' failed to load: beta (beta_plugin): KeyError: 1\n"
    assert text in capsys.readouterr().err


def test_commands_of_one_name_have_long_names():
    found = Registry()
    for distribution in ("acme", "beta", "gamma"):
        found.add_command("greet", Command("Greet.", "m"), distribution)
    assert sorted(found.commands) == ["acme/greet", "beta/greet", "gamma/greet"]


@pytest.mark.parametrize(
    ("module", "declared", "error"),
    [
        ("commands_named_badly", '{"a b": Command("X.", "m")}', "is not a valid name"),
        ("commands_of_text", '{"x": "m"}', "is a str"),
    ],
)
def test_an_invalid_declaration_breaks_the_plugin(tmp_path, monkeypatch, module, declared, error):
    text = f"from harness import Command, hookimpl\n@hookimpl\ndef harness_commands():\n    return {declared}\n"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = registry.discover_plugins([("acme", EntryPoint("c", module, "harness"))])
    monkeypatch.delitem(sys.modules, module)
    (broken,) = found.broken_plugins
    assert error in broken.error
    assert found.commands == {}
