"""Each contract check finds the defect that it is for, and `harness plugins --check` reports it."""

from __future__ import annotations

import importlib
import sys

import pytest

from harness import Component, ComponentExample, HarnessError, registry
from harness.cli.main import main
from harness.testing import contract
from harness.testing.component_under_test import ComponentUnderTest

PREAMBLE = """
import random
from dataclasses import replace
from harness import Check, Exporter, Finding, HarnessError, InvalidRow, Message, Metric, Mitigation, Mode, Optimizer
from harness import Record, RowFormat, Scheduler, Source, Span, Stage, StageSource, Template, Tracker, events
"""
METRIC = """
class Length(Metric):
    requires, score_names = "answer", ("words",)
    def signature(self): return "words"
    def statistics(self, item): return {"words": (float(len(item.answer.split())), 1.0)}
    def aggregate(self, name, total): return total[0] / total[1]
"""
TEMPLATE = """
class Plain(Template):
    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        spans = []
        for message in messages:
            if tools or message.tool_calls or message.role == "tool":
                raise HarnessError("template plain", "tools are not supported", "choose another template")
            trained = message.role == "assistant" and message.train
            spans += [Span(f"[{message.role}] ", markup=True), Span(message.content, train=trained)]
            spans.append(Span(tokenizer.eos_token, train=trained, markup=True))
        return (*spans, *([Span("[assistant] ", markup=True)] if add_generation_prompt else []))
    def stop_strings(self, tokenizer): return (tokenizer.eos_token,)
"""
SOURCE = """
class Rows(Source):
    def records(self):
        for number in range(2):
            yield Record(f"row {number}", {"a": number})
"""
MODE = """
class One(Mode):
    def stages(self): return (Stage("one", (StageSource("desk", "domain"),)),)
"""
MITIGATION = """
class Nothing(Mitigation):
    pass
"""
IS_RATIO = "    def is_ratio(self, name): return True\n"
SOURCE_THAT_CANNOT_BE_CLOSED = """
class Rows(Source):
    def records(self):
        try:
            yield Record("row 0", {"a": 0})
            yield Record("row 1", {"a": 1})
        except GeneratorExit:
            raise OSError("closed")
"""
MITIGATION_WITH_STATE = """
class Nothing(Mitigation):
    def on_stage_start(self, stage, model, rows, *, seed): self.draw = random.random()
    def state_dict(self): return {"draw": self.draw}
    def load_state_dict(self, state): self.draw = state["draw"]
"""
ROWS = {"example": ComponentExample(rows=2)}
SIZE = {"options": {"size": {"type": "integer", "default": 1, "description": "The size."}}}
SCHEDULER = """
class Constant(Scheduler):
    def factor(self, step, *, steps, warmup_steps): return 1.0
"""
OPTIMIZER = """
class Plain(Optimizer):
    def build(self, param_groups, settings):
        import torch
        return torch.optim.SGD(param_groups, momentum=0.5)
"""
OPTIMIZER_OF_STEPS = """
def build_optimizer(param_groups):
    import torch

    class Steps(torch.optim.Optimizer):
        def step(self):
            self.count = getattr(self, "count", 0) + 1
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.data -= group["lr"] / self.count * weight.grad

    return Steps(param_groups, {"lr": 0.1})

class Plain(Optimizer):
    def build(self, param_groups, settings):
        return build_optimizer(param_groups)
"""
TRACKER = """
class Notes(Tracker):
    def on_event(self, event):
        if isinstance(event, events.RunStarted):
            self.losses = []
        elif isinstance(event, events.StepLogged):
            self.losses.append(event.metrics["loss"])
"""
CHECK = """
class Shouts(Check):
    def find_issues(self, rows, *, name, is_training):
        for example in rows:
            for message in example.messages:
                if message.content.isupper():
                    yield Finding(example.location, "capitals")
"""
ROW_FORMAT = """
class Log(RowFormat):
    required_keys = ("ask", "reply")
    def parse_row(self, row):
        for key in self.required_keys:
            if not isinstance(row[key], str) or not row[key]:
                raise InvalidRow(f"has no text in {key}")
        return [Message("user", row["ask"]), Message("assistant", row["reply"])]
"""
EXPORTER = """
class Names(Exporter):
    def export(self, source, folder):
        (folder / "names.txt").write_text(str(sorted(source.model.iterdir())))
        return "names.txt"
    def load(self, folder, max_tokens):
        return Loaded()

class Loaded:
    tolerance = 0.1
    def encode_prompt(self, messages):
        return [1, 2]
    def logits(self, tokens):
        return __import__("numpy").zeros((2, 9))
    def ends_answer(self, token):
        return False
"""
WEIGHTS = """
class Nothing(Mitigation):
    weighs_tokens_in_parts = True
    def token_weights(self, logits, targets, batch):
        return logits.softmax(-1).amax(-1)
"""
PENALTY = """
class Nothing(Mitigation):
    def token_penalty(self, model, batch):
        return lambda logits, place: logits.square().mean(-1)
"""
WRITER = """
class Nothing(Mitigation):
    unmixed_sources = ("chat",)
    def generate_rows(self, stage, model, prompts, *, seed):
        for answer in prompts.write_responses(model, max_new_tokens=4, temperature=1.0, seed=seed):
            if answer.text:
                yield answer.to_example()
"""
LABELS = """
class Nothing(Mitigation):
    def filter_labels(self, model, batch):
        return batch["labels"].where(batch["labels"] != 8, -100)
"""
LOSS = """
class Nothing(Mitigation):
    def extra_loss(self, model, token_fraction):
        return sum(weight.square().sum() for weight in model.parameters())
"""
RESTART = """
class Nothing(Mitigation):
    is_added = False
    def extra_loss(self, model, token_fraction):
        if self.is_added:
            return None
        self.is_added = True
        return sum(weight.square().sum() for weight in model.parameters())
    def on_step_restart(self, model):
        self.is_added = False
"""
REACTION = """
class Nothing(Mitigation):
    def on_evaluation(self, stage, model, scores):
        return {"loss": scores["general"].worsening("accuracy") * random.random()}
"""
EXAMPLES = {"example": ComponentExample(flagged="HELLO", row={"ask": "Hi", "reply": "Ho"}, rows=2)}
CHOICE = (
    MODE
    + """
    def order(self, stage, rows): return [random.random() for _ in rows.tokens]
"""
)
DEFECTS = {
    "name": ("metrics", METRIC, {}, "a-b"),
    "summary": ("metrics", METRIC, {"summary": "counts words"}),
    "descriptions": ("modes", MODE, {"options": {"size": {**SIZE["options"]["size"], "description": "size"}}}),
    "filled_options": ("metrics", METRIC, {**SIZE, "example": ComponentExample({"size": "1"})}),
    "factory_parameters": ("metrics", METRIC, SIZE),
    "options_are_used": (
        "mitigations",
        "class Nothing(Mitigation):\n    def __init__(self, size):\n        self.size = size\n",
        SIZE,
    ),
    "instance": ("metrics", MODE, {}),
    "light_creation": ("modes", f"import pandas\n{MODE}", {}),
    "members": ("metrics", METRIC.replace('"answer"', '"answers"'), {}),
    "signature": ("metrics", METRIC.replace('return "words"', 'return ""'), {}),
    "score_names": ("metrics", METRIC.replace('("words",)', '("words", "letters")'), {}),
    "additivity": ("metrics", METRIC.replace("total[0] / total[1]", "total[0]"), {}),
    "is_ratio": ("metrics", METRIC.replace("total[0] /", "1 - total[0] /") + IS_RATIO, {}),
    "direction": ("metrics", f"{METRIC}    higher_is_better = False\n", {}),
    "available": ("metrics", f"{METRIC}    def check_available(self): raise OSError('no file')\n", {}),
    "parameters": ("templates", TEMPLATE.replace(", tools=()", "").replace("tools or ", ""), {}),
    "hostile_text_user": ("templates", TEMPLATE.replace("train=trained)]", "train=trained, markup=True)]"), {}),
    "trained_spans": ("templates", TEMPLATE.replace(" and message.train", ""), {}),
    "untrained_user": ("templates", TEMPLATE.replace("markup=True), Span", "markup=message.train), Span"), {}),
    "prompts": ("templates", TEMPLATE.replace('Span("[assistant] "', 'Span("[answer] "'), {}),
    "stop_strings": ("templates", TEMPLATE.replace("return (tokenizer.eos_token,)", "return ()"), {}),
    "records": ("sources", SOURCE.replace('f"row {number}"', '"row"'), ROWS),
    "order": ("sources", SOURCE.replace('"a": number', '"a": random.random()'), ROWS),
    "first_rows": ("sources", SOURCE_THAT_CANNOT_BE_CLOSED, ROWS),
    "metadata": ("sources", f"{SOURCE}    def metadata(self): return {{'rows': 2}}\n", ROWS),
    "stages": ("modes", MODE.replace('"domain"),)', '"domain"),), {"epoch": 1}'), {}),
    "same_stages": ("modes", MODE.replace('"one"', 'f"one{random.random()}"'), {}),
    "row_choice": ("modes", CHOICE, {}),
    "descent": ("optimizers", OPTIMIZER.replace("param_groups, m", "param_groups, maximize=True, m"), {}),
    "learning_rate": ("optimizers", OPTIMIZER_OF_STEPS.replace('group["lr"]', "0.1"), {}),
    "optimizers/state": ("optimizers", OPTIMIZER_OF_STEPS, {}),
    "run": ("trackers", TRACKER.replace("self.losses = []", "event.spec['seed'] = 1"), {}),
    "failed_run": ("trackers", f"{TRACKER}        elif isinstance(event, events.RunFailed):\n            1 / 0\n", {}),
    "resumed_run": (
        "trackers",
        TRACKER.replace("self.losses = []", "self.losses = [] if not event.resuming else 1"),
        {},
    ),
    "unknown_events": (
        "trackers",
        f"{TRACKER}        elif type(event).__name__ not in vars(events):\n            1 / 0\n",
        {},
    ),
    "rows": ("checks", CHECK.replace("example.location", '"desk"').replace(".isupper()", ""), {}),
    "same_findings": ("checks", CHECK.replace(".isupper()", "").replace('"capitals"', "str(random.random())"), {}),
    "flagged_text": ("checks", CHECK, {"example": ComponentExample(flagged="hello")}),
    "keys": ("row_formats", ROW_FORMAT.replace('("ask", "reply")', '("ask", "ask")'), {}),
    "conversation": ("row_formats", ROW_FORMAT.replace('Message("user"', 'Message("assistant"'), EXAMPLES),
    "wrong_values": (
        "row_formats",
        ROW_FORMAT.replace("not isinstance(row[key], str) or not row[key]", "False"),
        EXAMPLES,
    ),
    "export": ("exporters", EXPORTER.replace("(folder /", "(source.model /"), {}),
    "token_weights": ("mitigations", WEIGHTS.replace("amax(-1)", "amax(-1) / len(logits)"), {}),
    "token_penalty": ("mitigations", PENALTY.replace("mean(-1)", "mean(-1) * place.stop"), {}),
    "labels": ("mitigations", LABELS.replace("-100", "9"), {}),
    "loss": ("mitigations", LOSS.replace("weight.square()", "weight.detach().square()"), {}),
    "step_restart": ("mitigations", RESTART.rpartition("    def on_step")[0], {}),
    "evaluation": ("mitigations", REACTION, {}),
    "generated_rows": ("mitigations", WRITER.replace("seed=seed", "seed=random.random()"), {}),
    "factors": ("schedulers", SCHEDULER.replace("1.0", "1 - step / (steps - 1 or 1)"), {}),
    "logits": ("mitigations", "class Nothing(Mitigation):\n    requires_logits = True\n", {}),
    "methods": ("mitigations", "class Nothing(Mitigation):\n    def on_stage_begin(self): pass\n", {}),
    "seed": ("mitigations", MITIGATION_WITH_STATE, {}),
    "state": ("mitigations", MITIGATION_WITH_STATE.replace('state["draw"]', "0.0"), {}),
    "penalty": ("mitigations", "class Nothing(Mitigation):\n    def add_weight_penalty(self, model): return 1.0\n", {}),
}
"""Check -> (component type, code, what is declared, name)."""
VALID = {
    "metrics": METRIC,
    "templates": TEMPLATE,
    "sources": SOURCE,
    "modes": MODE,
    "mitigations": MITIGATION,
    "schedulers": SCHEDULER,
    "optimizers": OPTIMIZER,
    "trackers": TRACKER,
    "checks": CHECK,
    "row_formats": ROW_FORMAT,
    "exporters": EXPORTER,
}
VALID_MITIGATIONS = {
    "weights": WEIGHTS,
    "penalty": PENALTY,
    "writer": WRITER,
    "labels": LABELS,
    "loss": LOSS,
    "restart": RESTART,
}


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """Return a function that registers a component, and returns it as the only one of `acme`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.delitem(sys.modules, "acme_parts", raising=False)

    def subject(kind, code, declared, name="parts"):
        (tmp_path / "acme_parts.py").write_text(PREAMBLE + code)
        sys.modules.pop("acme_parts", None)
        importlib.invalidate_caches()
        class_name = code.split("class ")[1].split("(")[0]
        plugins = registry.discover_plugins([])
        component = Component(**{"summary": "Does it.", "factory": f"acme_parts:{class_name}", **declared})
        plugins.add(kind, name, component, "acme")
        return ComponentUnderTest(plugins, kind, name, tmp_path, component.example)

    subject.folder = tmp_path
    return subject


@pytest.mark.parametrize("check", DEFECTS)
def test_a_check_finds_the_defect_that_it_is_for(check, subject):
    name = check.rpartition("/")[2]
    (function,) = (one for one in contract.checks_of(DEFECTS[check][0]) if contract.check_id(one) == name)
    assert contract.run_check(function, subject(*DEFECTS[check]))[0] == "failed"


def test_every_check_is_tested():
    checks = {contract.check_id(check) for kind in registry.INTERFACES for check in contract.checks_of(kind)}
    tested = {name for check in DEFECTS for name in (check, check.rpartition("/")[2])}
    untested = {check for check in checks - tested if not check.startswith("hostile_text")}
    assert untested == {"defaults", "is_parsed", "fingerprint"}  # the registry refuses the first


@pytest.mark.parametrize("kind", VALID)
def test_a_correct_component_passes(kind, subject):
    example = ComponentExample(
        rows=2, better="one two three", worse="one", flagged="HELLO", row={"ask": "Hi", "reply": "Ho"}
    )
    correct = subject(kind, VALID[kind], {"example": example})
    results = contract.run_checks(correct.registry, "acme", correct.folder)
    assert [(result.claim, result.reason) for result in results if result.status != "passed"] == []


@pytest.mark.parametrize("name", VALID_MITIGATIONS)
def test_a_correct_mitigation_passes(name, subject):
    correct = subject("mitigations", VALID_MITIGATIONS[name], {})
    results = contract.run_checks(correct.registry, "acme", correct.folder)
    assert [(result.claim, result.reason) for result in results if result.status != "passed"] == []


def test_a_check_without_its_example_is_skipped_and_says_what_to_declare(subject):
    results = list(contract.run_checks(subject("checks", CHECK, {}).registry, "acme", subject.folder))
    (skipped,) = [result for result in results if result.status == "skipped"]
    assert skipped.reason.endswith("declare Component(example=ComponentExample(flagged=…))")


METRIC_OF_SAMPLES = """
class Length(Metric):
    requires = "answer"
    def __init__(self, size):
        self.min_samples, self.score_names = size, (f"words_{size}",)
    def signature(self): return "words"
    def statistics(self, item):
        return {name: (float(len(item.answer.split())), 1.0) for name in self.score_names}
    def aggregate(self, name, total): return total[0] / total[1]
"""


def test_an_attribute_that_the_core_reads_is_used(subject):
    """The interface declares it; the class need not read it."""
    (check,) = (one for one in contract.checks_of("metrics") if contract.check_id(one) == "options_are_used")
    assert contract.run_check(check, subject("metrics", METRIC_OF_SAMPLES, SIZE)) == ("passed", "")


MODEL_METRIC = """
class Width(Metric):
    requires, score_names = "model", ("width",)
    def signature(self): return "width"
    def measure(self, model, tokenizer, items): return [(item, float(model.config.hidden_size)) for item in items]
    def statistics(self, item): return {"width": (item.computed, 1.0)}
    def aggregate(self, name, total): return total[0] / total[1]
"""


def test_a_metric_of_the_model_is_checked_with_its_values(subject):
    def statuses(code, folder):
        (subject.folder / folder).mkdir()
        results = contract.run_checks(subject("metrics", code, {}).registry, "acme", subject.folder / folder)
        return {result.claim: result.status for result in results}

    correct = statuses(MODEL_METRIC, "correct")
    assert "failed" not in correct.values()
    assert correct["A better answer has a better score."] == "skipped"
    wrong = statuses(MODEL_METRIC.replace("total[0] / total[1]", "total[0]"), "wrong")
    assert wrong["Counting every item twice does not change a score."] == "failed"


def test_a_name_that_no_plugin_has_is_an_error():
    with pytest.raises(HarnessError, match="no installed plugin distribution or component has this name"):
        contract.find_components(registry.discover_plugins(), "nowhere")


def test_the_command_prints_a_line_for_each_check_and_fails_with_1(capsys, monkeypatch, subject):
    broken = subject("metrics", METRIC.replace("total[0] / total[1]", "total[0]"), {})
    monkeypatch.setattr(registry, "discover_plugins", lambda: broken.registry)
    assert main(["plugins", "--check", "acme/parts"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "passed metric parts: The summary is one sentence." in lines
    (failed,) = (line for line in lines if line.startswith("failed"))
    assert failed.endswith("if each of them is counted twice")
    assert lines[-1] == f"{len(lines) - 1} checks: 1 failed, {len(lines) - 2} passed"
