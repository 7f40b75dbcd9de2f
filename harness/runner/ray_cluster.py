"""Ray (https://docs.ray.io) as the cluster that runs the arms of an experiment. Imports Ray within functions."""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from harness.errors import HarnessError, RunError
from harness.interfaces.guard import describe_exception
from harness.runner.arm_task import LOG_FILE, ArmOutcome, ArmTask
from harness.runner.arm_worker import run_arm_task
from harness.utils import stop_signals
from harness.utils.formatting import shorten_text

LOCAL = "ray"
"""The value of `--on` for a Ray that is started on this machine, or the one that `RAY_ADDRESS` names."""

CONNECTION_SECONDS = 30.0
"""How long the program waits for the machine of an address."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Shared memory of a Ray that is started here. Arms are exchanged as files, so little is stored."""

MAX_ERROR_CHARACTERS = 300
"""Largest number of characters of an error of Ray, which may be a traceback."""

_CLIENT_SCHEME = "ray://"
_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")


def require_ray(on: str) -> None:
    """Require that the value of `--on` is valid, and that Ray is installed.

    Raises:
        HarnessError: One of them is not so.
    """
    if on != LOCAL and not _ADDRESS.fullmatch(on):
        hint = "type --on ray for this machine, or --on ray://HOST:PORT for a cluster"
        raise HarnessError(f"--on {on}", "is neither ray nor the address of a Ray cluster", hint)
    packages = ["ray", "grpc"] if on.startswith(_CLIENT_SCHEME) else ["ray"]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        what = f"the package {'grpcio' if missing[0] == 'grpc' else missing[0]} is not installed"
        raise HarnessError(f"--on {on}", what, "pip install 'harness-sft[ray]'")


class RayCluster:
    """Runs each task on one GPU of the cluster, or on one CPU core if it has no GPU."""

    def __init__(self) -> None:
        """Use the Ray that this process is connected to."""
        self._ray = ray = _import_ray()
        resources = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {"num_cpus": 1}
        # A process serves one task: its threads, its environment and its memory are those of the task.
        self._run = ray.remote(max_retries=0, max_calls=1, **resources)(run_arm_task)

    def submit(self, task: ArmTask) -> Any:
        """See `parallel_arms.Cluster`."""
        with self._connection():
            return self._run.options(name=task.arm).remote(task)

    def wait(self, handles: Sequence[Any], seconds: float) -> Sequence[Any]:
        """See `parallel_arms.Cluster`."""
        ended: list[Any]
        try:
            with self._connection():
                ended, _ = self._ray.wait(list(handles), num_returns=1, timeout=seconds, fetch_local=False)
        except KeyboardInterrupt:
            stop_signals.raise_if_requested()  # Ray replaces the exception of the signal handler, which has its name
            raise
        return ended

    def outcome(self, handle: Any) -> ArmOutcome:
        """See `parallel_arms.Cluster`."""
        errors = self._ray.exceptions
        try:
            outcome: ArmOutcome = self._ray.get(handle)
            return outcome
        except errors.TaskCancelledError:
            return ArmOutcome("it was canceled", "it was canceled", is_interrupted=True)
        except errors.OutOfMemoryError:
            reason = "Ray ended its process, because the machine was short of memory"
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.LocalRayletDiedError, errors.ObjectLostError):
            reason = f"its process died: it was killed, or memory ran out; its output: {LOG_FILE} in the arm's folder"
        except errors.RayTaskError as error:  # the process could not start the task, e.g. without harness there
            reason = f"its process failed: {str(error).strip().splitlines()[-1]}"
        except errors.RayError as error:
            reason = f"Ray could not run it: {' '.join(describe_exception(error).split())}"
        return ArmOutcome(reason, reason)

    def interrupt(self, handles: Sequence[Any], *, at_once: bool = False) -> None:
        """See `parallel_arms.Cluster`."""
        for handle in handles:
            with self._connection():
                self._ray.cancel(handle, force=at_once)

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Turn an error of Ray itself into a failure of the experiment, whose arms can be resumed."""
        try:
            yield
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            what = f"the connection to Ray was lost: {' '.join(describe_exception(error).split())}"
            raise RunError("Ray", what, "check the cluster, then resume: harness run --resume RUN") from error


@contextmanager
def ray_cluster(on: str) -> Iterator[RayCluster]:
    """Connect to a Ray cluster, or start Ray on this machine; disconnect or end it afterwards, and all tasks with it.

    Args:
        on: `ray`, `ray://HOST:PORT` or `HOST:PORT`.

    Raises:
        HarnessError: `on` is invalid, Ray is not installed, or the cluster cannot be reached.
    """
    require_ray(on)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = _import_ray()
    if on == LOCAL and ray.is_initialized():  # a Python program that uses Ray itself
        yield RayCluster()
        return
    if ray.is_initialized():
        hint = 'pass on="ray" to use that one, or call ray.shutdown() first'
        raise HarnessError(f"--on {on}", "this program is connected to Ray already", hint)
    with _without_messages_of_ray():
        with _unchanged_signal_handlers():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the error says the same in one line
                    _connect(on)
            except HarnessError:
                raise
            except Exception as error:
                ray.shutdown()
                reason = shorten_text(" ".join(describe_exception(error).split()), MAX_ERROR_CHARACTERS)
                hint = (
                    "check that the cluster runs, its versions of Ray and Python, and RAY_AUTH_MODE if it has a token"
                )
                raise HarnessError(f"--on {on}", f"cannot connect to Ray: {reason}", hint) from error
        try:
            yield RayCluster()
        finally:
            with _unchanged_signal_handlers():
                ray.shutdown()


def _import_ray() -> Any:
    return importlib.import_module("ray")


def _connect(on: str) -> None:
    ray = _import_ray()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS", "") if on == LOCAL else on
    match = _ADDRESS.fullmatch(address)
    if match is not None:
        _require_reachable(on, match["host"].strip("[]"), int(match["port"]))
        ray.init(address, **options)
        return
    if address not in ("", "local"):
        raise HarnessError("RAY_ADDRESS", f"{address!r} is not HOST:PORT or ray://HOST:PORT", "correct or unset it")
    # A Ray of its own: one that runs here may belong to another experiment or user, and end with it.
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray gives its processes a low priority
    ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **options)


def _require_reachable(on: str, host: str, port: int) -> None:
    """Raise HarnessError if nothing listens at an address: Ray itself would wait for minutes."""
    try:
        socket.create_connection((host, port), timeout=CONNECTION_SECONDS).close()
    except (OSError, OverflowError) as error:
        what = f"cannot reach {host}:{port}: {getattr(error, 'strerror', None) or error}"
        hint = "check the address, and that the cluster runs; its port for ray:// is usually 10001"
        raise HarnessError(f"--on {on}", what, hint) from error


@contextmanager
def _without_messages_of_ray() -> Iterator[None]:
    """Discard what Ray prints about processes that died: the failure of the arm says it in one line."""
    worker = importlib.import_module("ray._private.worker")
    name = "print_to_stdstream"  # not a public interface: without it the messages are printed
    printer = getattr(worker, name, None)
    if printer is None:
        yield
        return
    setattr(worker, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(worker, name, printer)


@contextmanager
def _unchanged_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers afterwards: Ray replaces them, see `harness.utils.stop_signals`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
