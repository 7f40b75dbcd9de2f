"""Code of answers: what runs, what the sandbox stops, answers that only pretend to pass, and pass@k over tests."""

from __future__ import annotations

import pytest
from harness_metrics import pass_at_k, sandbox

from harness import HarnessError, Item

isolation = pytest.mark.skipif(not sandbox.can_isolate(), reason="this machine does not allow user namespaces")
each_isolation = pytest.mark.parametrize("isolated", [False, pytest.param(True, marks=isolation)])
RUN = {"tests": "test", "timeout": 5, "memory": 512, "isolated": False}
FALSE = "assert double(4) == 8"


def passes(code, tests="", seconds=5, *, isolated=False):
    return sandbox.run_python(code, tests, seconds, 512, isolated=isolated)


@pytest.mark.parametrize(
    ("code", "right"),
    [
        ("print('any output')\nassert 1 + 1 == 2", True),
        ("assert False", False),
        ("def f(:", False),
        ("x = bytearray(10**9)", False),
        ("from collections import namedtuple\nimport logging, dataclasses, subprocess\nnamedtuple('P', 'x')(1)", True),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\nassert P(1).x == 1", True),
        ("import sys\nassert not sys.stdin.read()", True),
        ("def f() -> undefined: pass", False),
    ],
)
def test_a_program_passes_if_it_reaches_its_end(code, right):
    assert passes(code) is right


@each_isolation
def test_tests_use_the_names_of_the_program(isolated):
    assert passes("def double(n):\n    return 2 * n", FALSE, isolated=isolated)
    assert not passes("def double(n):\n    return n", FALSE, isolated=isolated)


EARLY_EXITS = {
    "sys.exit": "import sys\nsys.exit(0)",
    "raise": "raise SystemExit(0)",
    "os._exit": "import os\nos._exit(0)",
    "exit code of the isolation": "import os\nos._exit(97)",
    "exit in a function": "import os\ndef double(n):\n    os._exit(0)",
    "kill": "import os\nos.kill(os.getpid(), 15)",
    "kill the group": "import os\nos.killpg(0, 9)",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "an open string that ends in the tests": 'import sys\nx = """',
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\nassert False",
    "excepthook": "import sys, os\nsys.excepthook = lambda *_: os._exit(0)\nassert False",
}


@each_isolation
@pytest.mark.parametrize("code", EARLY_EXITS.values(), ids=EARLY_EXITS)
def test_an_answer_that_exits_before_the_tests_have_run_fails(code, isolated):
    assert not passes(code, f'"""A test."""\n{FALSE}', isolated=isolated)


FIND_NONCE = """
import os, re, sys

def values(frame):
    while frame is not None:
        yield from (*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts)
        frame = frame.f_back

def flatten(value, depth=0):
    if isinstance(value, (list, tuple, set)) and depth < 4:
        for each in value:
            yield from flatten(each, depth + 1)
    elif isinstance(value, dict) and depth < 4:
        yield from flatten(list(value.values()), depth + 1)
    else:
        yield value

def double(n):
    for value in flatten(list(values(sys._getframe()))):
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
        for nonce in re.findall("[0-9a-f]{32}", text):
            for descriptor in range(64):
                try:
                    os.write(descriptor, nonce.encode())
                except OSError:
                    pass
            os._exit(0)
"""
CHEATS = {
    "frames, while the tests run": FIND_NONCE,
    "frames, before": f"{FIND_NONCE}\ndouble(1)",
    "the job": "import os\ntry:\n    os.lseek(0, 0, 0)\nexcept OSError:\n    pass\n"
    "job = os.read(0, 9999)\n"
    "for fd in range(3, 64):\n    try:\n        os.write(fd, job[-34:-2])\n    except OSError:\n"
    "        pass\nos._exit(0)",
    "exec": "import builtins\nbuiltins.exec = lambda *_: None",
    "main": "import sys\nfor frame in [sys._getframe(1)]:\n    frame.f_locals['box'][:] = []\n"
    "    frame.f_locals['execute'] = lambda *_: None\n    frame.f_globals['run'] = None",
    "a flood of output": "import os\nwhile True:\n    for fd in range(3, 64):\n        try:\n"
    "            os.write(fd, b'0' * 65536)\n        except OSError:\n            pass",
}


@each_isolation
@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS)
def test_an_answer_cannot_claim_that_the_tests_have_run(code, isolated):
    assert not passes(code, FALSE, isolated=isolated)


REFUSED = {
    "objects": "import gc\ngc.get_objects()",
    "stack": "import gc, sys\ngc.get_referents(sys._getframe(1))",
    "tracing": "import sys\nsys.settrace(lambda *_: None)",
    "profiling": "import sys\nsys.setprofile(lambda *_: None)",
    "ctypes": "import ctypes",
    "its C module": "import _ctypes",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "signals": "import os\nos.kill(os.getpid(), 0)",
}


@each_isolation
@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED)
def test_what_could_find_the_proof_or_change_the_limits_is_refused(code, isolated):
    assert not passes(code, isolated=isolated)


@each_isolation
def test_a_program_without_end_is_stopped(isolated):
    assert not passes("while True: pass", seconds=1, isolated=isolated)


@each_isolation
def test_a_program_that_waits_is_stopped(isolated):
    assert not passes("import time\ntime.sleep(60)", seconds=1, isolated=isolated)


@each_isolation
def test_memory_is_limited(isolated):
    assert not passes("x = []\nwhile True:\n    x.append(bytearray(10**7))", isolated=isolated)


@each_isolation
@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor _ in range(3):\n    os.fork()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
    ],
)
def test_no_other_process_is_started(code, isolated):
    assert not passes(code, isolated=isolated)


@isolation
def test_isolated_code_sees_no_other_process_and_has_no_rights():
    assert passes("import os\nassert os.getpid() == 1 and not os.listdir('/proc')", isolated=True)


def test_sets_have_the_same_order_each_time():
    code = "import sys\nassert sys.flags.hash_randomization == 0 and sys.flags.safe_path and sys.flags.no_user_site"
    assert passes(code)


@isolation
def test_isolated_code_cannot_write_files(tmp_path):
    code = f"import os\nos.mkdir({str(tmp_path / 'written')!r})"
    assert passes(code)
    (tmp_path / "written").rmdir()
    assert not passes(code, isolated=True)
    assert not (tmp_path / "written").exists()


@isolation
def test_isolated_code_has_no_network():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        code = f"import socket\nsocket.create_connection({address!r}, 2)"
        assert passes(code)
        assert not passes(code, isolated=True)


def test_the_first_fence_of_an_answer_is_its_code():
    assert pass_at_k.code_of("Here:\n```python\nx = 1\n```\nand\n```\ny = 2\n```") == "x = 1"
    assert pass_at_k.code_of("```py\nx = 1") == "x = 1"
    assert pass_at_k.code_of(" x = 1\n") == "x = 1"


def test_pass_at_k_counts_the_answers_whose_code_passes_the_tests(metric):
    instance = metric("pass_at_k", k=[1, 2], run=RUN)
    right, wrong = "```python\ndef double(n):\n    return 2 * n\n```", "def double(n):\n    return n"
    item = Item("a", "", "", right, more_answers=(wrong, ""), data={"test": "assert double(4) == 8"})
    ((_, outcomes),) = instance.prepare([item])
    assert outcomes == [True, False, False]
    from dataclasses import replace

    statistics = instance.statistics(replace(item, computed=outcomes))
    assert statistics == {"pass_at_1": (pytest.approx(1 / 3), 1.0), "pass_at_2": (pytest.approx(2 / 3), 1.0)}
    assert instance.computes_values
    assert not metric("pass_at_k").computes_values


def test_a_row_without_tests_is_an_error(metric):
    with pytest.raises(HarnessError, match='give its source "keep"'):
        list(metric("pass_at_k", run=RUN).prepare([Item("a", "", "", "x")]))


def test_a_machine_without_isolation_refuses_before_training(metric, monkeypatch):
    monkeypatch.setattr(pass_at_k, "can_isolate", lambda: False)
    metric("pass_at_k", run=RUN).check_available()
    with pytest.raises(HarnessError, match="cannot run code without network"):
        metric("pass_at_k", run={**RUN, "isolated": True}).check_available()
