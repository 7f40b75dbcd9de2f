"""The process that runs one arm of an experiment: `run_arm_task`.

Heavy packages are imported within functions: some of them read environment variables when they are imported, so
these are set first.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.events import Event, RunStarted, WarningRaised
from harness.hookspecs import hookimpl
from harness.interfaces.guard import describe_exception
from harness.runner.arm_task import LOG_FILE, ArmOutcome, ArmTask
from harness.utils.redaction import redact_text
from harness.utils.stop_signals import handle_stop_signals

if TYPE_CHECKING:
    from harness.registry import Registry
    from harness.spec.spec import Spec


def run_arm_task(task: ArmTask) -> ArmOutcome:
    """Run one arm in this process, which is started for it and ends with it. Raises nothing.

    SIGINT stops the arm as in any run: a training stage finishes its step and saves a checkpoint.

    Args:
        task: The arm. The folder of the experiment must be on a disk that this machine has.
    """
    os.environ.update(task.environment)
    folder = _enter_experiment(task)
    if folder is None:
        where = os.path.join(task.working_directory, task.experiment)
        what = f"the machine {socket.gethostname()} does not have the folder {where}"
        return ArmOutcome.of_error(
            HarnessError(f"arm {task.arm!r}", what, 'set "output" to a folder on a disk that all machines share')
        )
    try:
        _redirect_output(folder / "arms" / task.arm / LOG_FILE)
        with handle_stop_signals():
            return _run_arm(task, folder)
    except HarnessError as error:
        return ArmOutcome.of_error(error)
    except KeyboardInterrupt as error:
        reason = str(error) or "interrupted"
        return ArmOutcome(reason, reason, is_interrupted=True)
    except Exception as error:
        print(redact_text("".join(traceback.format_exception(error))), file=sys.stderr)
        reason = redact_text(" ".join(describe_exception(error).split()))
        return ArmOutcome(reason, f"{reason}; traceback: arms/{task.arm}/{LOG_FILE}")


def _run_arm(task: ArmTask, folder: Path) -> ArmOutcome:
    """Load the stored spec of the experiment, and run the arm as an experiment in one process does."""
    from harness import registry
    from harness.runner.arm_run import ArmContext, plan_arms, run_arm
    from harness.runner.folder import INVALID_ROWS_FOLDER
    from harness.runner.shared_stages import SharedStages
    from harness.spec import arms as arms_of

    _set_thread_count()
    plugins = registry.discover_plugins()
    warnings = _WarningList(after_start=task.is_prepared)
    plugins.manager.register(warnings, name="warnings")
    spec = _load_spec(folder, plugins, ())
    all_arms = arms_of.expand_arms(spec.document["arms"], spec.where(("arms",)))
    (arm,) = (arm for arm in all_arms if arm.name == task.arm)
    (arm_run,) = plan_arms([(arm, _load_spec(folder, plugins, (*arm.overrides(), "arms=null")))], plugins)
    arm_run.invalid_rows_folder = folder / "arms" / arm.name / INVALID_ROWS_FOLDER  # other arms write theirs now
    context = ArmContext(plugins, folder / "arms", task.parent, task.tracked)
    outcome = run_arm(context, arm_run, SharedStages(task.earlier, task.stages_to_keep))
    return replace(outcome, warnings=warnings.texts)


def _enter_experiment(task: ArmTask) -> Path | None:
    """Change to the working directory of the main process, if this machine has it. Returns the experiment's folder."""
    with contextlib.suppress(OSError):
        os.chdir(task.working_directory)  # paths of the spec may be relative to it
    folder = Path(task.experiment)
    if Path.cwd() != Path(task.working_directory):
        folder = Path(task.working_directory, folder)
    return folder if (folder / "spec.json").is_file() else None


def _redirect_output(file: Path) -> None:
    """Append all output of this process to a file, which begins with where and when the process was started."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stream = file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
    now = datetime.now().isoformat(sep=" ", timespec="seconds")
    print(f"process {os.getpid()} on {socket.gethostname()}, {now}", flush=True)


def _set_thread_count() -> None:
    """Compute with as many threads as `OMP_NUM_THREADS` says: Ray sets it to the number of CPU cores of the task."""
    import torch

    count = os.environ.get("OMP_NUM_THREADS", "")
    if count.isdecimal() and int(count) > 0:
        torch.set_num_threads(int(count))


def _load_spec(folder: Path, plugins: Registry, overrides: Sequence[str]) -> Spec:
    from harness.spec import schema
    from harness.spec import spec as spec_module

    return spec_module.load_spec(
        folder / "spec.json", schema.compose_schema(plugins), list(overrides), plugins.broken_plugins
    )


class _WarningList:
    """Collects the warnings of the arm, for the main process.

    Attributes:
        texts: Text and rows of each warning, without repetition.
    """

    def __init__(self, *, after_start: bool) -> None:
        """Collect from the beginning, or with `after_start` from the start of the run, after its preparation."""
        self.texts: list[tuple[str, Sequence[str]]] = []
        self._is_collecting = not after_start

    @hookimpl
    def harness_on_event(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._is_collecting = True
        elif isinstance(event, WarningRaised) and self._is_collecting:
            warning = event.text, tuple(event.rows)
            if warning not in self.texts:
                self.texts.append(warning)
