"""The contract of every component: its declaration and its factory."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import subprocess
import sys
from typing import Any

from harness.errors import HarnessError
from harness.registry import HEAVY_PACKAGES, INTERFACES
from harness.testing.component_under_test import CheckFailed, ComponentUnderTest, require

MAX_SUMMARY = 120
"""Longest summary, in characters."""


def check_name(subject: ComponentUnderTest) -> None:
    """The name is an identifier, so that it can be used in `--set`."""
    short_name = subject.name.rpartition("/")[2]
    require(short_name.isidentifier(), f"{short_name!r} is not an identifier; use letters, digits and '_'")


def check_summary(subject: ComponentUnderTest) -> None:
    """The summary is one sentence."""
    summary = subject.declaration.summary
    require(summary[:1].isupper() and summary.endswith("."), f"{summary!r} does not begin with a capital or end with .")
    require(
        "\n" not in summary and len(summary) <= MAX_SUMMARY, f"{summary!r} is not a line of {MAX_SUMMARY} characters"
    )


def check_descriptions(subject: ComponentUnderTest) -> None:
    """Every option has a description of complete sentences."""
    described = {name: option.get("description", "") for name, option in subject.declaration.options.items()}
    incomplete = [name for name, text in described.items() if text[-1:] not in (".", ")")]
    require(not incomplete, f"the descriptions of {incomplete} do not end with a full stop")


def check_defaults(subject: ComponentUnderTest) -> None:
    """Every option has either a default or is required."""
    declaration = subject.declaration
    for name, option in declaration.options.items():
        require(
            ("default" in option) != (name in declaration.required),
            f"{name!r} has a default and is required, or neither",
        )


def check_filled_options(subject: ComponentUnderTest) -> None:
    """A spec with the options of the example is valid, and gets every default."""
    try:
        filled = subject.options
    except HarnessError as error:
        raise CheckFailed(f"the example's {error.where}: {error.what}; declare Component(example=…)") from error
    declared = set(subject.declaration.options)
    require(set(filled) == declared, f"filling in defaults gives {sorted(filled)}")


def check_factory_parameters(subject: ComponentUnderTest) -> None:
    """The factory takes exactly the options, without defaults of its own."""
    factory = subject.factory
    has_no_constructor = inspect.isclass(factory) and factory.__init__ is object.__init__
    parameters = {} if has_no_constructor else dict(inspect.signature(factory).parameters)
    declared = set(subject.declaration.options)
    require(set(parameters) == declared, f"it takes {sorted(parameters)}, but the options are {sorted(declared)}")
    for name, parameter in parameters.items():
        require(
            parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY),
            f"{name!r} is not a plain parameter",
        )
        require(
            parameter.default is parameter.empty, f"the parameter {name!r} repeats a default; leave it to the options"
        )


def check_options_are_used(subject: ComponentUnderTest) -> None:
    """Every option is used by the code of the component."""
    factory, options = subject.factory, set(subject.declaration.options)
    if not options:
        return
    is_class = inspect.isclass(factory)
    owner = next(cls for cls in factory.__mro__ if "__init__" in vars(cls)) if is_class else factory
    if is_class and dataclasses.is_dataclass(owner):  # its constructor stores every option
        stored = options
    else:
        body = _function_body(owner.__init__ if is_class else owner)
        used = {node.id for node in ast.walk(body) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        require(options <= used, f"nothing reads {sorted(options - used)}")
        attributes = [node for node in ast.walk(body) if isinstance(node, ast.Attribute)]
        stored = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    # Every attribute that the constructor sets is used somewhere, in the class or in a base class.
    sources = [inspect.getsource(cls) for cls in (factory.__mro__[:-1] if is_class else [factory])]
    attributes = [node for text in sources for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if isinstance(node.ctx, ast.Load)}
    # The core reads what the interface declares, and `base_copy` for its memory.
    interfaces = [cls for cls in factory.__mro__ if "guarded_methods" in vars(cls)] if is_class else []
    declared = {name for cls in interfaces for name in (*vars(cls), *vars(cls).get("__annotations__", {}))}
    unused = stored - used - declared - {"base_copy"}
    require(not unused, f"nothing reads the attributes {sorted(unused)}, which the constructor sets")


def _function_body(function: Any) -> ast.AST:
    """Return the syntax tree of a function that is defined in a file."""
    first_line = inspect.getsourcelines(function)[1]
    module = ast.parse(inspect.getsource(sys.modules[function.__module__]))
    return next(
        node
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        and first_line in (node.lineno, *(decorator.lineno for decorator in node.decorator_list))
    )


def check_instance(subject: ComponentUnderTest) -> None:
    """The factory creates an instance of the base class of its type."""
    instance = subject.create()
    require(isinstance(instance, INTERFACES[subject.kind]), f"it is a {type(instance).__name__}")


def check_light_creation(subject: ComponentUnderTest) -> None:
    """Creating it imports nothing heavy: `harness validate` does so."""
    request = {"path": sys.path, "factory": subject.declaration.factory, "options": subject.options}
    server = _import_server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    reply = json.loads(server.stdout.readline())
    require(not reply["error"], f"a new interpreter cannot create it: {reply['error']}")
    heavy = ", ".join(reply["heavy"])
    require(not heavy, f"creating it imports {heavy}; import them in the methods that use them")


_SERVE_IMPORTS = f"""
import importlib, json, os, sys
import harness
reply, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    if os.fork() == 0:
        request, error = json.loads(line), ""
        sys.path[:] = request["path"]
        module, _, attribute = request["factory"].partition(":")
        try:
            getattr(importlib.import_module(module), attribute)(**request["options"])
        except BaseException as raised:
            error = repr(raised)
        heavy = sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY_PACKAGES!r}))
        print(json.dumps({{"heavy": heavy, "error": error}}), file=reply, flush=True)
        os._exit(0)
    if os.wait()[1] != 0:
        print(json.dumps({{"heavy": [], "error": "it crashed"}}), file=reply, flush=True)
"""
"""A program that creates each component in a process of its own, in which only `harness` has been imported."""


@functools.cache
def _import_server() -> subprocess.Popen[str]:
    """Start that program. It ends when this process ends, which closes its input."""
    return subprocess.Popen(
        [sys.executable, "-c", _SERVE_IMPORTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


CHECKS = (
    check_name,
    check_summary,
    check_descriptions,
    check_defaults,
    check_filled_options,
    check_factory_parameters,
    check_options_are_used,
    check_instance,
)
"""The checks of every component type."""
