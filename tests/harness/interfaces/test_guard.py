"""Every failure of a component is one line that names component, distribution and method."""

from __future__ import annotations

import functools
import sys
import types

import pytest
import torch

from harness.errors import ComponentError, HarnessError
from harness.interfaces.component import CORE_DISTRIBUTION, Component
from harness.interfaces.metric import Metric
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.interfaces.optimizer import Optimizer
from harness.interfaces.scheduler import Scheduler
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.registry import Registry
from harness.types import InvalidRecord, Item, Record, Share, SourceRows, Span, Stage, StageSource

ITEM = Item(id="row-7", prompt="p", reference="r", answer="a")
STAGE = Stage("one", (), {})
BATCH = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "labels": torch.zeros(2, 3, dtype=torch.long)}
ROWS = SourceRows("desk", (3, 4), (1, 2), ())
LOGITS = torch.zeros(4, 5)
GROUPS = [{"params": [torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)]}]


def fail(*arguments, **options):
    raise KeyError("z")


def fail_while_iterating(*arguments, **options):
    yield from ()
    raise OSError("connection reset by peer")


class CompleteTemplate(Template):
    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        return (Span("x"),)

    def stop_strings(self, tokenizer):
        return ("x",)


class CompleteSource(Source):
    def records(self):
        yield Record("f:1", {"a": 1})


class CompleteMode(Mode):
    def stages(self):
        return (STAGE,)


class CompleteMetric(Metric):
    requires = "answer"
    score_names = ("s",)

    def signature(self):
        return "s"

    def statistics(self, item):
        return {"s": (1.0, 1.0)}

    def aggregate(self, name, total):
        return total[0]


class CompleteOptimizer(Optimizer):
    def build(self, param_groups, settings):
        return torch.optim.SGD(param_groups, lr=0.1)


class CompleteScheduler(Scheduler):
    def factor(self, step, *, steps, warmup_steps):
        return 1.0


COMPLETE = {
    "template": CompleteTemplate,
    "source": CompleteSource,
    "mode": CompleteMode,
    "mitigation": Mitigation,
    "metric": CompleteMetric,
    "optimizer": CompleteOptimizer,
    "scheduler": CompleteScheduler,
}


def create(kind, members, name="x", distribution="harness-y"):
    """Return an instance of a complete component with some members replaced, created by a registry."""
    module = types.ModuleType("made_component")
    module.factory = type("Made", (COMPLETE[kind],), members)
    sys.modules["made_component"] = module
    registry = Registry()
    registry.add(f"{kind}s", name, Component("Does.", "made_component:factory"), distribution)
    try:
        return registry.create(f"{kind}s", name, {})
    finally:
        del sys.modules["made_component"]


def returning(value):
    return lambda self, *arguments, **options: value


def render(template):
    return template.render([], None)


CALLS = {
    ("template", "render"): render,
    ("template", "stop_strings"): lambda c: c.stop_strings(None),
    ("source", "records"): lambda c: list(c.records()),
    ("source", "metadata"): lambda c: c.metadata(),
    ("source", "warnings"): lambda c: c.warnings(),
    ("mode", "stages"): lambda c: c.stages(),
    ("mode", "select"): lambda c: c.select(STAGE, ROWS),
    ("mode", "order"): lambda c: c.order(STAGE, ROWS),
    ("mitigation", "check_compatible"): lambda c: c.check_compatible({}),
    ("mitigation", "check_stage"): lambda c: c.check_stage(STAGE),
    ("mitigation", "transform_stages"): lambda c: c.transform_stages((STAGE,)),
    ("mitigation", "generate_rows"): lambda c: list(c.generate_rows(STAGE, None, None, seed=0)),
    ("mitigation", "generation_settings"): lambda c: c.generation_settings(),
    ("mitigation", "prepare_model"): lambda c: c.prepare_model(None, seed=0),
    ("mitigation", "on_stage_start"): lambda c: c.on_stage_start(STAGE, None, {}, seed=0),
    ("mitigation", "filter_labels"): lambda c: c.filter_labels(None, BATCH),
    ("mitigation", "token_weights"): lambda c: c.token_weights(LOGITS, torch.zeros(4), BATCH),
    ("mitigation", "token_penalty"): lambda c: c.token_penalty(None, BATCH),
    ("mitigation", "batch_penalty"): lambda c: c.batch_penalty(None, BATCH, LOGITS),
    ("mitigation", "extra_loss"): lambda c: c.extra_loss(None, 1.0),
    ("mitigation", "add_weight_penalty"): lambda c: c.add_weight_penalty(None),
    ("mitigation", "param_groups"): lambda c: c.param_groups(None),
    ("mitigation", "on_before_step"): lambda c: c.on_before_step(None, None),
    ("mitigation", "stage_stats"): lambda c: c.stage_stats(),
    ("mitigation", "held_bytes"): lambda c: c.held_bytes(None, itemsize=4),
    ("mitigation", "extra_tokens"): lambda c: c.extra_tokens({}),
    ("mitigation", "on_step_restart"): lambda c: c.on_step_restart(None),
    ("mitigation", "on_step_end"): lambda c: c.on_step_end(None, 0.1),
    ("mitigation", "on_evaluation"): lambda c: c.on_evaluation(None, None, {}),
    ("mitigation", "after_checkpoint"): lambda c: c.after_checkpoint(None),
    ("mitigation", "on_stage_end"): lambda c: c.on_stage_end(STAGE, None, ()),
    ("mitigation", "variants"): lambda c: list(c.variants(None)),
    ("mitigation", "state_dict"): lambda c: c.state_dict(),
    ("mitigation", "load_state_dict"): lambda c: c.load_state_dict({}),
    ("metric", "signature"): lambda c: c.signature(),
    ("metric", "prepare"): lambda c: list(c.prepare([ITEM])),
    ("metric", "measure"): lambda c: list(c.measure(None, None, [ITEM])),
    ("metric", "statistics"): lambda c: c.statistics(ITEM),
    ("metric", "aggregate"): lambda c: c.aggregate("s", (1.0, 1.0)),
    ("metric", "aggregate_items"): lambda c: c.aggregate_items("s", torch.ones(2, 2).numpy()),
    ("metric", "is_ratio"): lambda c: c.is_ratio("s"),
    ("metric", "default_margin"): lambda c: c.default_margin("s", 1.0),
    ("metric", "tested_as"): lambda c: c.tested_as("s"),
    ("metric", "is_parsed"): lambda c: c.is_parsed(ITEM),
    ("metric", "diagnostics"): lambda c: c.diagnostics([ITEM]),
    ("metric", "unusable_reason"): lambda c: c.unusable_reason([ITEM]),
    ("metric", "check_available"): lambda c: c.check_available(),
    ("optimizer", "build"): lambda c: c.build(GROUPS, {}),
    ("optimizer", "param_groups"): lambda c: c.param_groups(None),
    ("optimizer", "check_available"): lambda c: c.check_available(),
    ("scheduler", "factor"): lambda c: c.factor(3, steps=9, warmup_steps=0),
}
"""How the core calls each method of each interface."""

WRONG_RESULTS = [
    ("template", "render", None, "returned None, not a tuple of spans"),
    ("template", "render", "text", "returned a str, not a tuple of spans"),
    ("template", "render", (Span("a"), "b"), "returned a str at index 1, not only spans"),
    ("template", "stop_strings", "</s>", "returned a str, not a tuple of strings"),
    ("template", "stop_strings", (None,), "returned None at index 0, not only strings"),
    ("source", "records", None, "returned None, not an iterator"),
    ("source", "records", {"a": 1}, "returned a dict, not an iterator"),
    ("source", "records", [{"a": 1}], "yielded a dict, not a Record or InvalidRecord, at index 0"),
    ("source", "records", [InvalidRecord("f:1", "is bad"), Record("f:2", "x")], "yielded a Record (f:2) with a str"),
    ("source", "metadata", None, "returned None, not a dict"),
    ("source", "metadata", {1: "a"}, "has the key 1, which is not a string"),
    ("source", "warnings", "careful", "returned a str, not a tuple of strings"),
    ("mode", "stages", None, "returned None, not a tuple of stages"),
    ("mode", "stages", (), "returned no stage"),
    ("mode", "stages", ("one",), "returned a str at index 0, not only stages"),
    ("mode", "stages", (Stage(1, ()),), "returned a stage whose name is 1, not a string"),
    ("mode", "stages", (Stage("a", ("desk",)),), "has sources of the stage 'a' that are wrong: a str at index 0"),
    ("mode", "stages", (Stage("a", (StageSource("desk", 1),)),), "whose name or role is not a string: 'desk', 1"),
    ("mode", "stages", (Stage("a", (StageSource("desk", "domain", "9"),)),), "to a str, not an integer or None"),
    ("mode", "stages", (Stage("a", (), "fast"),), "gives the stage 'a' a str as train, not a dict"),
    ("mode", "stages", (Stage("a", (), shares=(Share("desk", 0.1),)),), "its sources are 'desk', its amount 0.1"),
    ("mode", "stages", (Stage("a", (), shares=(Share(("desk",), "x"),)),), "its amount 'x'"),
    ("mode", "stages", (Stage("a", (), suites="desk"),), "has suites of the stage 'a' that are wrong: a str"),
    ("mode", "stages", (Stage("a", (), mitigations=("ewc",)),), "a tuple as mitigations, not a dict or None"),
    ("mode", "stages", (Stage("a", (), adapter="keep"),), "gives the stage 'a' the adapter 'keep'"),
    ("mode", "select", "yes", "returned a str, not 2 truth values"),
    ("mode", "select", [True], "returned 1 truth values for 2 rows"),
    ("mode", "select", [1, 0], "returned values that are not True or False"),
    ("mode", "order", [1.0, 2.0, 3.0], "returned 3 keys for 2 rows"),
    ("mode", "order", [1.0, float("nan")], "returned nan for row 1, not a finite number"),
    ("mitigation", "transform_stages", None, "returned None, not a tuple of stages"),
    ("mitigation", "transform_stages", (), "turns 1 stages into 0"),
    ("mitigation", "transform_stages", (Stage("two", ()),), "turns the stages ['one'] into ['two']"),
    ("mitigation", "transform_stages", (Stage("one", (), "fast"),), "gives the stage 'one' a str as train, not a dict"),
    ("mitigation", "generate_rows", None, "returned None, not an iterator"),
    ("mitigation", "generate_rows", ["a"], "yielded a str, not an Example or InvalidRecord, at index 0"),
    ("mitigation", "generation_settings", "v1", "returned a str, not a dict"),
    ("mitigation", "generation_settings", {"a": {1}}, "returned settings that JSON cannot hold"),
    ("mitigation", "prepare_model", None, "returned None, not the model to train"),
    (
        "mitigation",
        "filter_labels",
        torch.zeros(2, 2),
        "a Tensor of shape (2, 2), not a tensor of labels of shape (2, 3)",
    ),
    ("mitigation", "filter_labels", torch.zeros(2, 3).long().numpy(), "a ndarray of shape (2, 3), not a tensor of"),
    ("mitigation", "filter_labels", torch.zeros(2, 3), "returned labels of torch.float32, not of integers"),
    ("mitigation", "filter_labels", torch.ones(2, 3) > 0, "returned labels of torch.bool, not of integers"),
    ("mitigation", "token_weights", torch.zeros(3), "a Tensor of shape (3,), not a tensor of weights of shape (4,)"),
    ("mitigation", "token_weights", torch.zeros(4).numpy(), "a ndarray of shape (4,), not a tensor of weights"),
    ("mitigation", "token_weights", torch.zeros(4, dtype=torch.long), "weights of torch.int64, not of floats"),
    ("mitigation", "token_penalty", 0.5, "returned 0.5, not a function or None"),
    ("mitigation", "batch_penalty", torch.zeros(4), "a Tensor of shape (4,), not a scalar tensor or None"),
    ("mitigation", "batch_penalty", "0", "returned a str, not a scalar tensor or None"),
    ("mitigation", "batch_penalty", torch.zeros(()).numpy(), "a ndarray of shape (), not a scalar tensor or None"),
    ("mitigation", "extra_loss", 0.5, "returned 0.5, not a scalar tensor or None"),
    ("mitigation", "add_weight_penalty", "0.5", "returned a str, not a scalar tensor or None"),
    ("mitigation", "stage_stats", [1], "returned a list, not a dict"),
    ("mitigation", "held_bytes", -1, "returned -1, not a number of at least 0"),
    ("mitigation", "extra_tokens", 0.5, "returned 0.5, not a number of at least 0"),
    ("mitigation", "stage_stats", {"a b": 1.0}, "has the key 'a b'; use letters"),
    ("mitigation", "stage_stats", {"rms": float("nan")}, "has 'rms': nan, not a finite number"),
    ("mitigation", "stage_stats", {"rms": torch.zeros(2)}, "has 'rms': a Tensor of shape (2,), not a finite number"),
    ("mitigation", "on_evaluation", None, "returned None, not a dict"),
    ("mitigation", "variants", "alpha", "returned a str, not an iterator"),
    ("mitigation", "variants", [0.5], "yielded 0.5, not a name at index 0"),
    ("mitigation", "state_dict", None, "returned None, not a dict"),
    ("mitigation", "state_dict", {"rows": {1, 2}}, "state['rows'] is a set, which cannot be read back"),
    ("mitigation", "state_dict", {"a": [{"f": len}]}, "state['a'][0]['f'] is a builtin_function_or_method"),
    ("mitigation", "state_dict", {"a": torch.zeros(2).numpy()}, "state['a'] is a ndarray of shape (2,)"),
    ("mitigation", "state_dict", {"a": {(1, 2): 3}}, "state['a'] has the key (1, 2)"),
    ("metric", "signature", None, "returned None, not a string"),
    ("metric", "prepare", None, "returned None, not an iterator"),
    ("metric", "prepare", [("row-7", 1)], "yielded a tuple, not (item, value), at index 0"),
    ("metric", "prepare", [(ITEM, {1, 2})], "yielded a value of item row-7 that JSON cannot hold (Object of type set"),
    ("metric", "measure", [(ITEM, float("nan"))], "yielded a value of item row-7 that JSON cannot hold"),
    ("metric", "statistics", None, "item row-7: returned None, not a dict of score name -> statistics"),
    ("metric", "statistics", {"s": 1.0}, "item row-7: the statistics of 's' are 1.0, not a tuple of numbers"),
    ("metric", "statistics", {"s": (float("nan"), 1.0)}, "item row-7: the statistics of 's' hold nan"),
    ("metric", "statistics", {"s": ("1",)}, "item row-7: the statistics of 's' hold a str, not a finite number"),
    ("metric", "aggregate", None, "returned None, not a number"),
    ("metric", "aggregate_items", "0.5", "returned a str, not a number"),
    ("metric", "is_ratio", None, "returned None, not True or False"),
    ("metric", "default_margin", 0.0, "returned 0.0, not a finite number above 0"),
    ("metric", "default_margin", float("inf"), "returned inf, not a finite number above 0"),
    ("metric", "tested_as", "t", "returned a str, not one of its scores ('s',)"),
    ("metric", "is_parsed", 1, "returned 1, not True or False"),
    ("metric", "diagnostics", 0.5, "returned 0.5, not a dict"),
    ("metric", "unusable_reason", None, "returned None, not a string"),
    ("optimizer", "build", None, "returned None, not a torch optimizer"),
    ("optimizer", "build", torch.optim.SGD(GROUPS[0]["params"][:1], 0.1), "an optimizer of 1 weights; it must have"),
    ("mitigation", "param_groups", None, "returned None, not a tuple of dicts"),
    ("mitigation", "param_groups", [{"lr_scale": 2.0}], "returned a group without a list 'params' at index 0"),
    ("mitigation", "param_groups", [{"params": [], "lr": 0.1}], "use 'lr_scale', a factor of train.learning_rate"),
    ("optimizer", "param_groups", [{"params": [], "lr_scale": -1}], "returned -1 as 'lr_scale' at index 0"),
    ("scheduler", "factor", float("nan"), "returned nan for step 3, not a number of at least 0"),
    ("scheduler", "factor", -0.1, "returned -0.1 for step 3, not a number of at least 0"),
]


def test_every_guarded_method_is_called_in_these_tests():
    guarded = {(kind, method) for kind, interface in COMPLETE.items() for method in interface.guarded_methods}
    assert guarded == set(CALLS)


@pytest.mark.parametrize(("kind", "method"), list(CALLS))
def test_an_exception_names_component_distribution_and_method(kind, method):
    with pytest.raises(ComponentError) as caught:
        CALLS[kind, method](create(kind, {method: fail}))
    item = " (item row-7)" if method in ("statistics", "is_parsed") else ""
    assert str(caught.value) == f"{kind} 'x' of harness-y, {method}: KeyError: 'z'{item}"
    assert caught.value.exit_code == 1
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(("kind", "method", "value", "problem"), WRONG_RESULTS)
def test_a_wrong_result_names_component_distribution_and_method(kind, method, value, problem):
    with pytest.raises(ComponentError) as caught:
        CALLS[kind, method](create(kind, {method: returning(value)}))
    assert str(caught.value).startswith(f"{kind} 'x' of harness-y, {method}: ")
    assert problem in caught.value.what


@pytest.mark.parametrize(("kind", "method"), [("source", "records"), ("mitigation", "variants"), ("metric", "prepare")])
def test_an_exception_while_iterating_is_named_and_not_taken_for_a_full_disk(kind, method):
    with pytest.raises(ComponentError, match=f"{method}: OSError: connection reset by peer"):
        CALLS[kind, method](create(kind, {method: fail_while_iterating}))


def test_closing_the_variants_early_closes_the_plugin_s_iterator():
    closed = []

    def variants(self, model):
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(True)

    names = create("mitigation", {"variants": variants}).variants(None)
    assert next(names) == "a"
    names.close()
    assert closed == [True]


def test_an_error_with_a_remedy_passes_unchanged():
    def check_available(self):
        raise HarnessError("metric x", "needs a folder", "set encoder")

    with pytest.raises(HarnessError, match="set encoder") as caught:
        create("metric", {"check_available": check_available}).check_available()
    assert type(caught.value) is HarnessError


@pytest.mark.parametrize(("kind", "method"), list(CALLS))
def test_a_component_that_ends_the_program_is_named(kind, method):
    def leave(*arguments, **options):
        raise SystemExit(3)

    with pytest.raises(ComponentError, match=rf"{kind} 'x' of harness-y, {method}: SystemExit: 3"):
        CALLS[kind, method](create(kind, {method: leave}))


def test_a_function_that_a_method_returns_is_guarded():
    def leave(logits, place):
        raise SystemExit("end")

    penalty = create("mitigation", {"token_penalty": returning(leave)}).token_penalty(None, BATCH)
    with pytest.raises(ComponentError, match="token_penalty: SystemExit: end"):
        penalty(LOGITS, slice(0, 4))


def test_an_iterator_that_ends_the_program_is_named():
    def records(self):
        yield Record("f:1", {})
        raise SystemExit(3)

    with pytest.raises(ComponentError, match="records: SystemExit: 3"):
        list(create("source", {"records": records}).records())


class Unreadable:
    """Raises whatever is looked at."""

    def __getattribute__(self, name):
        raise KeyError(name)


def test_a_result_that_cannot_be_looked_at_is_named():
    with pytest.raises(ComponentError, match="prepare_model: KeyError"):
        create("mitigation", {"prepare_model": returning(Unreadable())}).prepare_model(None, seed=0)


@pytest.mark.parametrize(
    "method",
    [
        functools.lru_cache(lambda self, name: name == "s" or fail()),
        staticmethod(lambda name: name == "s" or fail()),
        classmethod(lambda cls, name: name == "s" or fail()),
        functools.partialmethod(lambda self, wanted, name: name == wanted or fail(), "s"),
    ],
    ids=["cached", "static", "class", "partial"],
)
def test_methods_that_are_not_functions_are_guarded(method):
    metric = create("metric", {"is_ratio": method})
    assert metric.is_ratio("s") is True
    with pytest.raises(ComponentError, match="metric 'x' of harness-y, is_ratio: KeyError: 'z'"):
        metric.is_ratio("t")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), FileNotFoundError(2, "No file", "a.txt")])
def test_an_os_error_is_harness_s_own_in_a_built_in_alone(error):
    def on_step_end(self, model, learning_rate):
        raise error

    with pytest.raises(ComponentError, match="on_step_end: "):
        create("mitigation", {"on_step_end": on_step_end}).on_step_end(None, 0.1)
    with pytest.raises(OSError, match="No ") as caught:
        create("mitigation", {"on_step_end": on_step_end}, distribution=CORE_DISTRIBUTION).on_step_end(None, 0.1)
    assert caught.value is error


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_errors_that_are_handled_by_their_class_pass_unchanged(error):
    def on_step_end(self, model, learning_rate):
        raise error

    with pytest.raises(type(error)) as caught:
        create("mitigation", {"on_step_end": on_step_end}).on_step_end(None, 0.1)
    assert caught.value is error


def test_a_method_of_a_mixin_is_guarded():
    class Failing:
        def statistics(self, item):
            raise KeyError("z")

    class Mixed(Failing, CompleteMetric):
        pass

    with pytest.raises(ComponentError, match=r"Mixed, statistics: KeyError: 'z' \(item row-7\)"):
        Mixed().statistics(ITEM)


def test_an_error_below_super_is_named_once():
    class Outer(create("mode", {"stages": fail}).__class__):
        def stages(self):
            return super().stages()

    with pytest.raises(ComponentError) as caught:
        Outer().stages()
    assert str(caught.value).count("KeyError") == 1


def test_the_interface_s_own_defaults_are_not_wrapped():
    class Plain(Mitigation):
        pass

    assert Plain.prepare_model is Mitigation.prepare_model


# -- creation ---------------------------------------------------------------------------------------------------------


def test_a_factory_that_fails_is_named():
    with pytest.raises(ComponentError) as caught:
        create("mode", {"__init__": fail})
    assert str(caught.value) == "mode 'x' of harness-y, made_component:factory: KeyError: 'z'"


def test_a_component_of_another_type_is_refused(monkeypatch):
    monkeypatch.setitem(COMPLETE, "metric", CompleteMode)
    with pytest.raises(ComponentError, match=r"returned a Made, which does not extend harness\.Metric"):
        create("metric", {})


@pytest.mark.parametrize(
    ("kind", "base", "missing"),
    [
        ("template", Template, "render, stop_strings"),
        ("source", Source, "records"),
        ("mode", Mode, "stages"),
        ("optimizer", Optimizer, "build"),
        ("scheduler", Scheduler, "factor"),
        ("metric", Metric, "requires, score_names, signature, statistics, aggregate or aggregate_items"),
    ],
)
def test_a_component_that_lacks_required_members_is_refused(monkeypatch, kind, base, missing):
    monkeypatch.setitem(COMPLETE, kind, base)
    with pytest.raises(ComponentError, match=f"does not define {missing}"):
        create(kind, {})
