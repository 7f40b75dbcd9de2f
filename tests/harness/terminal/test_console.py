"""What the console shows of a run, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
from support import example_run

from harness import events
from harness.terminal import messages
from harness.terminal.console import Console
from harness.terminal.progress import ProgressLog
from harness.types import Share, Stage, StageSource


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def watch(mode, tmp_path, file=None, errors=None, **options):
    """Show a run, and return the output and the error stream."""
    file, errors = file or io.StringIO(), errors or io.StringIO()
    with Console(mode, file, errors) as console:
        example_run.feed(console, tmp_path / "mixed-sft-a1", **options)
    return file.getvalue(), errors.getvalue()


def emit(console, event_class, stage_index=0, /, **fields):
    console.harness_on_event(event_class(stage_index=stage_index, **fields))


def move(console, phase, done, total, note="", unit="rows"):
    emit(console, events.ProgressUpdated, phase=phase, done=done, total=total, note=note, unit=unit)


# -- plain ------------------------------------------------------------------------------------------------------------


def test_log_has_few_lines_per_phase_and_report(tmp_path):
    out, err = watch("plain", tmp_path, stages=2, steps=500)
    assert err == ""
    lines = out.partition("suite / metric")[0].splitlines()
    assert len(lines) < 30
    assert [line for line in lines if line.startswith("evaluate helpdesk")] == [
        "evaluate helpdesk: 40 rows in 0.0 s",
    ]
    assert len([line for line in lines if line.startswith("train: ")]) == 2, "one a stage"
    assert not any(": 0 of " in line for line in lines)
    assert "stage 1 of 2: stage-1, 500 steps" in lines
    assert "stage-1: 500 steps in 3.0 s, loss 0.800, 100 tokens, 33 tokens/s" in lines
    assert "base  helpdesk  rougeL 0.220  response_perplexity 22.14" in lines
    assert "▲ better" in out
    assert "\x1b" not in out


def test_the_address_of_the_live_curves_is_shown_at_the_start():
    out = io.StringIO()
    with Console("plain", out, io.StringIO()) as console:
        emit(console, events.TrackingStarted, url="https://there/#/experiments/1/runs/ab")
        emit(console, events.TrackingStarted, url="http://127.0.0.1:5000/#/x", command="mlflow ui")
    assert out.getvalue().splitlines() == [
        "live curves: https://there/#/experiments/1/runs/ab",
        "live curves: mlflow ui, then http://127.0.0.1:5000/#/x",
    ]


def test_data_is_shown_as_counts_and_realized_shares(tmp_path):
    out, _ = watch("plain", tmp_path)
    table = [line.split() for line in out.splitlines() if line.startswith(("source", "helpdesk ", "general "))][:3]
    assert table == [["source", "read", "held", "out", "used"], ["helpdesk", "60", "12", "48"], ["general", "90", "6"]]
    assert (
        "stage-1: general 10.2 % of loss tokens (asked 10 %), helpdesk 89.8 % of loss tokens; "
        "93.0 % of the positions of padded batches hold text"
    ) in out
    assert "stage-1 by epoch: general 10.1 %, 10.3 % of loss tokens" in out


def test_shares_of_sources_are_joined_and_many_epochs_shortened():
    parts = (
        StageSource("a", "domain"),
        StageSource("b", "general"),
        StageSource("c", "general"),
        StageSource("d", "replay"),
    )
    asked = (Share(("b", "c"), 0.2, "rows"), Share(("d",), 0.1))
    stage = Stage("one", parts, {}, asked)
    shares = {"a": {"loss_tokens": 0.7}, "b": {"rows": 0.05}, "c": {"rows": 0.15}, "d": {"loss_tokens": 0.0}}
    same = [{**shares, "d": {"loss_tokens": 0.1}} for _ in range(3)]
    many = [{**shares, "d": {"loss_tokens": 0.1 + 0.001 * n}} for n in range(10)]

    def told(epochs):
        event = events.DataPrepared(
            counts={}, stages=[stage], shares=[shares], efficiency=[1.0], epoch_shares=[epochs], digests={}, template=""
        )
        return [line.plain for line in list(messages.format_data(event))[1:]]

    first = (
        "one: b 5.0 % + c 15.0 % of rows (asked 20 %), d without any row (asked 10 %), a 70.0 % of loss tokens; "
        "batches without padding"
    )
    assert told(same[:1]) == [first]
    assert told(same) == [
        first,
        "one by epoch: b + c 20.0 % of rows in each of 3 epochs",
        "one by epoch: d 10.0 % of loss tokens in each of 3 epochs",
    ]
    assert told(many)[2].endswith("10.6 %, 10.7 % of loss tokens, and 2 more epochs")


@pytest.mark.parametrize("hours", [0.1, 1, 100])
def test_long_phase_logs_often_at_first_and_never_hundreds_of_lines(hours):
    said, now = [], [0.0]
    lines = ProgressLog(lambda text: said.append((now[0], text.plain)), clock=lambda: now[0])
    total = int(hours * 3600)
    for second in range(total + 1):
        now[0] = float(second)
        lines.update(1, "train", second, total, "loss 1.0", "updates")
    times = [at for at, _ in said]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) <= max(601, total / 25)
    assert min(gaps) >= 10 or total - times[-2] < 10
    assert times[:2] == [30.0, 60.0]
    assert len(said) < (40 if hours <= 1 else 150)
    assert said[-1][1].startswith(f"train: {total:,} updates in ")
    assert said[-1][1].endswith(", loss 1.0")


def test_slow_quarters_are_logged():
    said, now = [], [0.0]
    lines = ProgressLog(lambda text: said.append(text.plain), clock=lambda: now[0])
    for second in range(0, 41, 2):
        now[0] = float(second)
        lines.update(0, "tokenize", second, 40, "", "rows")
    assert said == [
        "tokenize: 10 of 40 rows, 30 s left",
        "tokenize: 20 of 40 rows, 20 s left",
        "tokenize: 30 of 40 rows, 10 s left",
        "tokenize: 40 rows in 40 s",
    ]


def test_short_phase_is_one_line_or_none_in_brief_mode():
    said, now = [], [0.0]
    lines = ProgressLog(lambda text: said.append(text.plain), clock=lambda: now[0])
    for phase, brief, step in (("one", False, 0.9), ("two", True, 0.9), ("three", True, 4.0)):
        lines.brief = brief
        for done in range(11):
            lines.update(0, phase, done, 10, "", "rows")
            now[0] += step
    assert [line.partition(":")[0] for line in said if line.endswith("s")] == ["one", "three"]
    assert [line for line in said if line.startswith("one")] == ["one: 10 rows in 9.0 s"]
    assert "three: 10 rows in 40 s" in said
    assert not any(line.startswith("two") for line in said)


def test_phase_without_count_is_logged_at_start_and_at_end_if_slow():
    said, now = [], [0.0]
    lines = ProgressLog(lambda text: said.append(text.plain), clock=lambda: now[0])
    for took in (1.0, 100.0):
        lines.update(0, "load", 0, 0, "a/model", "")
        now[0] += took
        lines.end()
    assert said == ["load: a/model", "load: a/model", "load: in 1 min 40 s, a/model"]


def test_phase_of_unknown_length_ends_with_next_phase():
    said = []
    lines = ProgressLog(lambda text: said.append(text.plain))
    lines.update(0, "read", 10, 0, "", "rows")
    lines.update(0, "read", 25, 0, "", "rows")
    lines.update(0, "fetch", 0, 98_300_000, "", "B")
    lines.update(0, "fetch", 98_300_000, 98_300_000, "", "B")
    lines.update(0, "fetch", 98_300_000, 98_300_000, "", "B")
    assert said == ["read: 25 rows in 0.0 s", "fetch: 98.3 MB in 0.0 s"]


def test_same_phase_is_logged_again_after_another_event():
    out = io.StringIO()
    with Console("plain", out, io.StringIO()) as console:
        for _ in range(2):
            move(console, "evaluate", 8, 8)
            emit(console, events.SuitesEvaluated, 0, evaluations=())
    assert out.getvalue() == "evaluate: 8 rows in 0.0 s\n" * 2


def test_long_log_line_is_not_wrapped():
    out, err = io.StringIO(), io.StringIO()
    with Console("plain", out, err) as console:
        move(console, "read " + "x" * 200, 1, 1, note="y" * 100)
        emit(console, events.WarningRaised, text="z" * 300)
    assert len(out.getvalue().splitlines()) == 1
    assert err.getvalue() == f"warning: {'z' * 300}\n"


# -- quiet and JSON ---------------------------------------------------------------------------------------------------


def test_mid_stage_evaluation_is_one_line_and_does_not_end_phase():
    file = io.StringIO()
    console = Console("plain", file, io.StringIO())
    move(console, "train", 3, 10, unit="steps")
    facts = {"scores": {"helpdesk/rougeL": 0.25}, "combined": 0.5, "best": True, "over": False}
    emit(console, events.MidStageEvaluated, 1, step=3, **facts, mitigations={"repair/pulls": 1})
    emit(console, events.MidStageEvaluated, 1, step=6, **{**facts, "best": False, "over": True})
    move(console, "train", 6, 6, "ended after 6 of 10 steps", unit="steps")
    emit(console, events.BestWeightsRestored, 1, step=3, of=6)
    lines = file.getvalue().splitlines()
    assert "step 3  helpdesk/rougeL 0.250  combined 0.500  best so far  repair/pulls 1" in lines
    assert any(line.endswith("no improvement: stopping the stage early") for line in lines)
    assert "restored the best weights, of step 3" in lines
    assert sum("train" in line and "ended after" in line for line in lines) == 1


def test_quiet_shows_only_warnings(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    with Console("quiet", out, err) as console:
        emit(console, events.WarningRaised, text="mind the gap")
        example_run.feed(console, tmp_path / "a")
    assert out.getvalue() == ""
    assert err.getvalue() == "warning: mind the gap\n"


def test_json_is_one_document_on_the_output_and_lines_on_the_error_stream(tmp_path):
    out, err = watch("json", tmp_path)
    made = json.loads(out)
    assert made["stages"] == ["base", "stage-1"]
    assert made["changes"][0]["verdict"] == "better"
    assert "train: 50 steps in " in err
    assert "suite / metric" not in err
    assert "\x1b" not in err


def test_json_of_failed_run_is_one_document(tmp_path):
    out, _ = watch("json", tmp_path, fail=True)
    assert json.loads(out) == {"error": "RuntimeError: out of memory", "folder": str(tmp_path / "mixed-sft-a1")}


def test_json_of_finished_run_that_violates_limits_is_only_its_report(tmp_path):
    file = io.StringIO()
    with Console("json", file, io.StringIO()) as console:
        example_run.feed(console, tmp_path / "a")
        emit(console, events.RunFailed, error="RunError: the scores do not measure the model", folder="a")
    assert json.loads(file.getvalue())["stages"] == ["base", "stage-1"]


def of_experiment(tmp_path, *heard):
    """Return the JSON output of an experiment with one of these events for each arm."""
    file = io.StringIO()
    with Console("json", file, io.StringIO()) as console:
        for number, event_class in enumerate(heard, start=1):
            arm = {"name": f"arm{number}", "changes": {}}
            if event_class is events.ArmsFinished:
                experiment = SimpleNamespace(to_json=lambda: {"arms": "compared"})
                emit(console, event_class, experiment=experiment, folder="a")
                continue
            emit(console, events.ArmStarted, arm=arm["name"], number=number, of=len(heard))
            if event_class is events.InterruptedRunCompleted:
                report = example_run.made_report(tmp_path)
                emit(console, event_class, folder="a", completed=("page",), report=report)
            else:
                fails = event_class is events.RunFailed
                example_run.feed(console, tmp_path / arm["name"], started={"arm": arm}, fail=fails)
    return json.loads(file.getvalue())


def test_json_of_experiment_is_only_its_comparison(tmp_path):
    heard = (events.InterruptedRunCompleted, events.RunFailed, events.RunFinished, events.ArmsFinished)
    assert of_experiment(tmp_path, *heard) == {"arms": "compared"}


def test_json_of_experiment_without_results_is_first_failure(tmp_path):
    made = of_experiment(tmp_path, events.RunFailed, events.RunFailed)
    assert made == {"error": "RuntimeError: out of memory", "folder": str(tmp_path / "arm1")}


def test_stopped_run_names_the_command_that_resumes_it_unless_it_has_a_report(tmp_path):
    arm = tmp_path / "sweep" / "arms" / "a"
    arm.mkdir(parents=True)
    failed = events.RunFailed(error="ValueError: x", folder=str(arm))
    resume = "stopped; to resume: harness run --resume"
    assert messages.format_stop(failed, is_arm=False) == f"{resume} {arm}"
    assert messages.format_stop(failed, is_arm=True) == f"stopped; the files are kept in {arm}"
    (arm / "report.json").write_text("{}")
    assert messages.format_stop(failed, is_arm=False) == f"stopped; the files are kept in {arm}"


def test_failed_run_names_folder_and_leaves_error_to_command(tmp_path):
    out, err = watch("plain", tmp_path, fail=True)
    assert out.splitlines()[-1] == f"stopped; to resume: harness run --resume {tmp_path}/mixed-sft-a1"
    assert "out of memory" not in out + err


# -- a terminal -------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_terminal_shows_bars_and_one_line_per_finished_phase(terminal, tmp_path):
    out, _ = watch("terminal", tmp_path, file=terminal, errors=terminal)
    plain = unstyled(out)
    assert "✓ evaluate helpdesk  40 rows  0.0 s" in plain
    assert "✓ train  50 steps  0.0 s" in plain
    assert "━" in plain
    assert out.count("\x1b[?25h") >= out.count("\x1b[?25l") > 0


def test_cursor_is_restored_after_an_error(terminal):
    def fail():
        with Console("terminal", terminal, terminal) as console:
            move(console, "tokenize", 3, 10)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    shown = terminal.getvalue()
    assert "\x1b[?25l" in shown
    assert "\x1b[?25h" in shown.rpartition("\x1b[?25l")[2]
    assert "✗ tokenize  3 rows" in unstyled(shown)


def test_warning_is_above_bars_or_on_separate_error_stream(terminal):
    errors = io.StringIO()
    with Console("terminal", terminal, errors) as console:
        move(console, "tokenize", 3, 10)
        emit(console, events.WarningRaised, text="mind the gap")
    assert errors.getvalue() == "warning: mind the gap\n"
    assert "mind the gap" not in terminal.getvalue()
    both = Terminal()
    with Console("terminal", both, both) as console:
        move(console, "tokenize", 3, 10)
        emit(console, events.WarningRaised, text="mind the gap")
    assert "warning: mind the gap" in unstyled(both.getvalue())


@pytest.mark.parametrize("mode", ["terminal", "plain"])
def test_hostile_text_does_not_control_terminal(mode, terminal):
    evil = "[red]x[/red] [/]\x1b[2J\x1b]0;title\x07"
    file = terminal if mode == "terminal" else io.StringIO()
    with Console(mode, file, file) as console:
        move(console, evil, 1, 4, note=evil, unit="rows")
        emit(console, events.WarningRaised, text=evil)
        move(console, evil, 4, 4, note=evil, unit="rows")
    shown = file.getvalue()
    assert "[red]x[/red] [/]␛[2J" in unstyled(shown)
    assert "\x1b[2J" not in shown
    assert "\x1b]" not in shown
    assert "\x07" not in shown


def unstyled(text):
    """Remove the escape sequences that rich writes."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


# -- warnings ---------------------------------------------------------------------------------------------------------


def test_warning_is_shown_once_and_without_rows():
    errors = io.StringIO()
    with Console("plain", io.StringIO(), errors) as console:
        for _ in range(3):
            emit(console, events.WarningRaised, text="2 rows are odd", rows=["a:1", "a:2"])
            emit(console, events.WarningRaised, text="mind the gap")
    assert errors.getvalue().splitlines() == [
        "warning: 2 rows are odd; rows: data.json in the run's folder, or harness check",
        "warning: mind the gap",
    ]


def test_rows_are_shown_if_there_is_no_folder():
    errors = io.StringIO()
    with Console("quiet", io.StringIO(), errors, show_rows=True) as console:
        emit(console, events.WarningRaised, text="2 rows are odd", rows=["a:1", "a:2"])
    assert errors.getvalue().splitlines() == ["warning: 2 rows are odd", "  a:1", "  a:2"]


def prepare_arms(console, heard, *, ends=True):
    """Prepare arms, each with its warnings. heard: arm -> texts."""
    for number, (arm, texts) in enumerate(heard.items(), start=1):
        method = arm.partition(",seed=")[0]
        emit(console, events.ArmPreparing, arm=arm, number=number, of=len(heard), method=method)
        move(console, "read", 3, 10)
        move(console, "read", 10, 10)
        for text in texts:
            emit(console, events.WarningRaised, text=text)
        if ends or number < len(heard):
            facts = {"used": 1200, "evaluated": 30, "seconds": 1.5}
            emit(console, events.ArmPrepared, arm=arm, number=number, of=len(heard), **facts)
    if ends:
        emit(console, events.ArmsPrepared)


def test_a_warning_of_all_seeds_of_an_arm_has_the_name_of_the_arm():
    errors = io.StringIO()
    arms = {f"{arm},seed={seed}": [] for arm in ("naive", "ewc", "lora") for seed in (0, 1)}
    for name in ("ewc,seed=0", "ewc,seed=1", "lora,seed=1"):
        arms[name] += ["odd"]
    with Console("plain", io.StringIO(), errors) as console:
        prepare_arms(console, arms)
    assert errors.getvalue().splitlines() == ["warning: arms ewc, lora,seed=1: odd"]


def test_warnings_of_arms_are_shown_once_with_arm_names():
    out, errors = io.StringIO(), io.StringIO()
    arms = {f"arm{number}": ["all have it"] for number in range(1, 8)}
    arms["arm2"] += ["two have it", "one has it"]
    arms["arm3"] += ["two have it"]
    for name in list(arms)[1:]:
        arms[name] += ["six have it"]
    with Console("plain", out, errors) as console:
        prepare_arms(console, arms)
        assert errors.getvalue().splitlines() == [
            "warning: all have it",
            "warning: arms arm2, arm3: two have it",
            "warning: arm arm2: one has it",
            "warning: arms arm2, arm3, arm4, arm5 and 2 more: six have it",
        ]
        emit(console, events.ArmStarted, arm="arm1", number=1, of=7)
        emit(console, events.WarningRaised, text="all have it")  # it is prepared again as its run begins
        emit(console, events.WarningRaised, text="two have it")
        emit(console, events.WarningRaised, text="the store is away")
        emit(console, events.WarningRaised, text="the store is away")
    assert errors.getvalue().splitlines()[4:] == ["warning: the store is away"]
    shown = out.getvalue().splitlines()
    assert shown[0] == "arm 1 of 7 prepared: arm1, 1,200 rows to train on, 30 to evaluate, in 1.5 s"
    assert len(shown) == 7, "a line an arm; the first run has not ended"


def test_held_back_warnings_are_shown_if_preparation_fails():
    errors = io.StringIO()
    with Console("plain", io.StringIO(), errors) as console:
        prepare_arms(console, {"a": ["both"], "b": ["both", "odd"]}, ends=False)
        assert errors.getvalue() == ""
    assert errors.getvalue().splitlines() == ["warning: both", "warning: arm b: odd"]


def test_terminal_leaves_no_line_of_quick_preparation(terminal):
    with Console("terminal", terminal, terminal) as console:
        prepare_arms(console, {"a": ["both"], "b": ["both", "odd"]})
        emit(console, events.ArmStarted, arm="a", number=1, of=2)
        move(console, "tokenize", 10, 10)
        emit(console, events.ArmFinished, arm="a", reused=True)
    plain = unstyled(terminal.getvalue())
    assert "✓" not in plain
    assert plain.count("warning: both") == 1
    assert plain.count("arm b: odd") == 1
    assert "arm 2 of 2 prepared: b, 1,200 rows" in plain


@pytest.mark.parametrize("mode", ["plain", "terminal"])
def test_an_experiment_is_one_line_for_each_arm(tmp_path, terminal, mode):
    """Everything else about an arm is in its own folder."""
    out = terminal if mode == "terminal" else io.StringIO()
    with Console(mode, out, io.StringIO()) as console:
        for number, arm in enumerate(("naive,seed=0", "ewc,seed=0"), start=1):
            emit(console, events.ArmStarted, arm=arm, number=number, of=2)
            example_run.feed(console, tmp_path / arm, started={"arm": {"name": arm, "changes": {}}})
            emit(console, events.ArmFinished, arm=arm, reused=number == 2)
    shown = unstyled(out.getvalue()).splitlines()
    lines = [line for line in shown if line.strip() and "━" not in line]  # a progress bar leaves no line
    assert len(lines) == 2
    assert re.fullmatch(r"arm 1 of 2: naive,seed=0, finished in [\d.]+ s", lines[0].strip())
    assert lines[1].strip() == "arm 2 of 2: ewc,seed=0, already has a result"


def test_arms_that_run_side_by_side_end_in_another_order():
    out = io.StringIO()
    with Console("plain", out, io.StringIO()) as console:
        for number, arm in enumerate(("naive", "ewc", "lora"), start=1):
            emit(console, events.ArmStarted, arm=arm, number=number, of=3)
        for arm in ("ewc", "naive"):
            emit(console, events.ArmFinished, arm=arm, reused=False)
    lines = out.getvalue().splitlines()
    assert [line.rpartition(", finished in ")[0] for line in lines] == ["arm 2 of 3: ewc", "arm 1 of 3: naive"]


# -- streams ----------------------------------------------------------------------------------------------------------


def test_console_mode_follows_option_and_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Console.from_options(quiet=False, json=False).mode == "plain"
    assert Console.from_options(quiet=True, json=False).mode == "quiet"
    assert Console.from_options(quiet=False, json=True).mode == "json"
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert Console.from_options(quiet=False, json=False).mode == "terminal"
    monkeypatch.setenv("TERM", "dumb")
    assert Console.from_options(quiet=False, json=False).mode == "plain"


def test_run_can_be_written_to_stream_of_any_encoding(tmp_path):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with Console("plain", file, io.StringIO()) as console:
        emit(console, events.WarningRaised, text="é → 客服")
        example_run.feed(console, tmp_path / "café-a1")
    file.flush()
    text = raw.getvalue().decode("ascii")
    assert "0.220 -> 0.420" in text
    assert "better" in text


def test_console_imports_neither_torch_nor_mlflow():
    script = (
        "import sys, harness.terminal.console, harness.report.run_report, harness.terminal.report_table;"
        "print([name for name in ('mlflow', 'torch', 'pandas', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
