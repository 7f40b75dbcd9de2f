"""The program of a process that runs an answer. `sandbox` starts it as a file, without the package.

It writes a secret number, the nonce, to its standard output if code and tests have run to their end. An exit before
that writes nothing: `sys.exit(0)` and `os._exit(0)` are failures. Code does not find the number in the frames of this
program: it is on the stack of an expression and in no variable. What could find it all the same is refused: native
memory access by ctypes, the objects of the garbage collector, and tracing. There is no /proc if it is isolated.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

CANNOT_ISOLATE = 97
"""Exit code if the machine does not allow the isolation. Code of an answer cannot cause it."""
FLAGS = ("-s", "-P", "-B", "-X", "utf8")
"""Options of the interpreter that runs an answer: no packages of the user, no folder of the program, no bytecode."""


def isolate() -> None:
    """Enter new namespaces, make every file system read-only, and go on in a process that ends with this one.

    The process is another interpreter, which has neither the rights within the namespaces nor ctypes.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    new_ns, new_ipc, new_user, new_pid, new_net = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
    if libc.unshare(new_user | new_ns | new_net | new_ipc | new_pid):
        os._exit(CANNOT_ISOLATE)
    ms_rec, ms_private = 0x4000, 0x40000
    if libc.mount(None, b"/", None, ms_rec | ms_private, None) or libc.mount(b"none", b"/proc", b"tmpfs", 0, None):
        os._exit(CANNOT_ISOLATE)
    read_only = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # struct mount_attr with attr_set = MOUNT_ATTR_RDONLY
    mount_setattr, at_fdcwd, at_recursive = 442, -100, 0x8000
    if libc.syscall(mount_setattr, at_fdcwd, b"/", at_recursive, read_only, ctypes.sizeof(read_only)):
        os._exit(CANNOT_ISOLATE)
    try:
        child = os.fork()  # the first process of the new process namespace: when it ends, the kernel kills all others
    except OSError:
        os._exit(CANNOT_ISOLATE)
    if child == 0:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        os.execv(sys.executable, [sys.executable, *FLAGS, __file__, "run"])
    os.close(0)
    os.close(1)
    _, status = os.waitpid(child, 0)
    os._exit(0 if status == 0 else 1)


def make_guard() -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that refuses what could find the nonce, reach other processes or run native code.

    The names that it uses are bound here, since code can replace those of builtins.
    """
    refused = frozenset(
        (
            *("gc.get_objects", "gc.get_referents", "gc.get_referrers"),
            *("sys.settrace", "sys.setprofile", "sys.monitoring.register_callback", "sys._current_frames"),
            *("sys._current_exceptions", "threading.settrace", "threading.setprofile"),
            *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"),
            *("pty.spawn", "os.kill", "os.killpg", "resource.setrlimit", "resource.prlimit"),
        )
    )
    modules = frozenset(("ctypes", "_ctypes", "cffi", "_cffi_backend", "_testcapi", "_testinternalcapi"))

    def guard(
        event: str,
        arguments: tuple[Any, ...],
        refused: frozenset[str] = refused,
        modules: frozenset[str] = modules,
        error: type[Exception] = PermissionError,
        missing: type[Exception] = ImportError,
    ) -> None:
        if event in refused:
            raise error(event)
        if event == "import" and arguments[0] in modules:
            raise missing(arguments[0])

    return guard


def read_job() -> tuple[list[Any], int]:
    """Set the limits, and return [code, tests, nonce] and the descriptor for the nonce."""
    import resource  # not on Windows, where this module is only imported

    job = json.loads(sys.stdin.buffer.read())
    memory = job["megabytes"] * 1024 * 1024
    for limit, value in (
        (resource.RLIMIT_CPU, job["seconds"]),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    done, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # the job cannot be read again
    os.dup2(nothing, 1)
    code = compile(job["code"], "<answer>", "exec", dont_inherit=True)
    tests = compile(job["tests"], "<tests>", "exec", dont_inherit=True)
    return [code, tests, job["nonce"].encode()], done


def run() -> None:
    """Run code, then tests, then write the nonce."""
    box, done = read_job()
    module = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv = module, ["code"]
    names, write, execute = vars(module), os.write, exec
    sys.addaudithook(make_guard())
    # From left to right: what is needed is on the stack before the code runs, and the code cannot replace it.
    write(done, (box.pop(), execute(box.pop(), execute(box.pop(), names) or names))[0])
    os._exit(0)


if __name__ == "__main__":
    isolate() if sys.argv[1] == "isolate" else run()
