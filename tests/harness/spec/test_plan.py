"""A plan holds what will run with every name checked, and says what a schema cannot."""

from __future__ import annotations

import sys
import types
from itertools import permutations

import pytest

from harness.errors import HarnessError
from harness.interfaces.component import Component
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.spec import plan as plan_module
from harness.spec.schema import compose_schema
from harness.spec.spec import load_spec
from harness.spec_keys import evaluation
from harness.types import Share, Stage, StageSource


@pytest.fixture
def planned(small_registry, small_spec, write):
    """The plan of the small spec as it stands when this is called."""

    def planned(*overrides):
        spec = load_spec(write(small_spec), compose_schema(small_registry), overrides)
        return plan_module.build_plan(spec, small_registry)

    return planned


@pytest.fixture
def refused(planned, tmp_path):
    """The lines of the error that planning gives."""

    def refused(*overrides):
        with pytest.raises(HarnessError) as caught:
            planned(*overrides)
        assert caught.value.exit_code == 2
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.lines()]

    return refused


@pytest.fixture
def bring(small_registry, monkeypatch):
    """Adds a component whose factory is the class given, to the small registry."""

    def bring(kind, name, factory, **declared):
        module = types.ModuleType(f"made_{name}")
        module.Made = factory
        monkeypatch.setitem(sys.modules, module.__name__, module)
        small_registry.add(kind, name, Component("Made up.", f"{module.__name__}:Made", **declared), "acme")

    return bring


def single(*parts):
    """A mode of one stage `only` with these parts."""

    class Single(Mode):
        def stages(self):
            return (Stage("only", parts),)

    return Single


# -- what is planned --------------------------------------------------------------------------------------------------


def test_a_plan_holds_the_stages_of_the_mode_after_the_mitigations(planned):
    (stage,) = planned().stages
    assert stage.name == "mixed"
    assert stage.sources == (StageSource("desk", "domain"), StageSource("chat", "general"))
    assert stage.shares == (Share(("chat",), 0.1),)


def test_a_stage_has_every_training_setting(planned, small_spec):
    small_spec["mode"] = {
        "continual": {
            "stages": [
                {"name": "one", "domain": ["desk"], "general": ["chat"]},
                {"name": "two", "domain": ["desk"], "general": ["chat"], "train": {"learning_rate": 3e-5, "steps": 7}},
            ]
        }
    }
    small_spec["train"] = {"learning_rate": 1e-5, "epochs": 2}
    one, two = planned().stages
    assert (one.train["learning_rate"], one.train["epochs"], one.train["steps"]) == (1e-5, 2, None)
    assert (two.train["learning_rate"], two.train["epochs"], two.train["steps"]) == (3e-5, 2, 7)
    assert one.train.keys() == two.train.keys()
    assert one.train["scheduler"] == "cosine"


def test_a_plan_holds_suites_sources_and_the_rest_of_the_spec(planned):
    made = planned("seed=5", "evaluate.chat.limit=9", "evaluate.desk.metrics.overlap.size=2")
    desk, chat = made.suites
    assert (desk.name, desk.source, desk.role, desk.limit) == ("desk", "desk_heldout", "domain", None)
    assert (chat.name, chat.source, chat.role, chat.limit) == ("chat", "chat_heldout", "general", 9)
    assert desk.metrics == {"overlap": {"size": 2}}
    assert desk.max_new_tokens == evaluation.SUITE_KEYS["max_new_tokens"]["default"]
    assert desk.batch_size == evaluation.SUITE_KEYS["batch_size"]["default"]
    assert (made.name, made.seed, made.template) == ("small", 5, ("plain", {}))
    kind, options = made.sources["desk"]
    assert (kind, options["held_out"], options["path"][-9:]) == ("lines", 0, "/desk.txt")


def test_a_spec_without_suites_is_planned(planned):
    assert planned("evaluate={}").suites == ()


def test_mitigations_apply_in_their_own_order_never_in_that_of_the_file(planned, small_spec, bring):
    class First(Mitigation):
        priority = -5

        def transform_stages(self, stages):
            return tuple(Stage(f"{stage.name}-first", stage.sources, stage.train) for stage in stages)

    class Second(Mitigation):
        def transform_stages(self, stages):
            return tuple(Stage(f"{stage.name}-second", stage.sources, stage.train) for stage in stages)

    bring("mitigations", "zz", First)
    bring("mitigations", "aa", Second)
    names = set()
    for order in permutations(["aa", "zz", "mixing"]):
        small_spec["mitigations"] = {name: {} for name in order}
        names |= {stage.name for stage in planned().stages}
    assert names == {"mixed-first-second"}


def test_a_mitigation_may_refuse_another_and_is_told_at_its_own_place(refused, planned, small_spec, bring):
    seen = []

    class Lonely(Mitigation):
        def check_compatible(self, others):
            seen.append(sorted(others))
            if "mixing" in others:
                raise HarnessError("mitigations.lonely.alone", "it goes with nothing", "take 'mixing' out")

    alone = {"alone": {"type": "boolean", "default": True, "description": "Nothing."}}
    bring("mitigations", "lonely", type("Made", (Lonely,), {"__init__": lambda self, alone: None}), options=alone)
    small_spec["mitigations"] = {"lonely": {"alone": True}, "mixing": {}}
    (line,) = refused()
    assert line.startswith("spec.json:")
    assert "mitigations.lonely.alone: it goes with nothing; take 'mixing' out" in line
    small_spec["mitigations"] = {"lonely": {}}
    planned()
    assert seen == [["mixing"], []], "it is no other to itself"


def test_sources_named_by_a_part_of_the_spec_are_found_once_each(small_registry, small_spec, write):
    small_spec["mitigations"] = {"mixing": {"source": "chat"}, "keep": {"source": "chat"}}
    spec = load_spec(write(small_spec), compose_schema(small_registry))
    assert plan_module.list_named_sources(spec, "mitigations") == ("chat",)
    assert plan_module.list_named_sources(spec, "mode") == ("desk", "chat")
    assert plan_module.list_named_sources(spec) == ("desk", "chat", "desk_heldout", "chat_heldout")


# -- what a schema cannot say -----------------------------------------------------------------------------------------


def test_a_suite_on_a_missing_source_is_told_with_its_place_and_the_nearest(refused, small_spec):
    small_spec["evaluate"]["desk"]["source"] = "desk_heldouts"
    (line,) = refused()
    place, _, rest = line.partition(" ")
    assert place.startswith("spec.json:")
    assert place.endswith(":7")
    assert rest == "evaluate.desk.source: there is no source 'desk_heldouts'; did you mean 'desk_heldout'?"


def test_every_missing_source_is_told_wherever_it_is_named(refused, small_spec):
    small_spec["mode"]["mixed"]["domain"] = ["desk", "xyz"]
    small_spec["mitigations"]["keep"] = {"source": "uvw"}
    small_spec["evaluate"]["chat"]["source"] = "rst"
    lines = refused()
    assert [line.split(";")[0].partition(" ")[2] for line in lines] == [
        "mode.mixed.domain.1: there is no source 'xyz'",
        "mitigations.keep.source: there is no source 'uvw'",
        "evaluate.chat.source: there is no source 'rst'",
    ]
    assert all(line.endswith("the spec's sources are: desk, desk_heldout, chat, chat_heldout") for line in lines)


def test_a_missing_source_that_an_override_names_is_told_as_the_override(refused):
    assert refused("evaluate.desk.source=xyz") == [
        "--set evaluate.desk.source=xyz: there is no source 'xyz'; "
        "the spec's sources are: desk, desk_heldout, chat, chat_heldout"
    ]


@pytest.mark.parametrize("source", ["desk", "chat"])
def test_nobody_is_examined_on_what_was_trained(refused, small_spec, source):
    small_spec["evaluate"]["desk"]["source"] = source
    (line,) = refused()
    assert f"the suite 'desk' would evaluate the model on training rows of '{source}'" in line
    assert f"""; give sources.{source}.lines "held_out": 0.1, or name a source of held-out rows""" in line
    assert " evaluate.desk.source: " in line


def test_a_trained_source_that_keeps_rows_out_may_be_examined(planned, small_spec):
    small_spec["sources"]["desk"]["lines"]["held_out"] = 0.1
    small_spec["evaluate"]["desk"]["source"] = "desk"
    assert planned().suites[0].source == "desk"


def test_a_source_that_only_a_mitigation_mixes_in_counts_as_trained(refused, small_spec):
    small_spec["mode"] = {"domain": {"sources": ["desk"]}}
    small_spec["mitigations"]["mixing"]["source"] = "chat_heldout"
    (line,) = refused()
    assert "the suite 'chat' would evaluate the model on training rows of 'chat_heldout'" in line


def test_two_stages_of_one_name_are_refused(refused, small_spec):
    stage = {"name": "one", "domain": ["desk"], "general": ["chat"]}
    small_spec["mode"] = {"continual": {"stages": [stage, stage]}}
    (line,) = refused()
    assert line.endswith(" mode.continual: two stages have the name 'one'; rename one of them")


def test_a_source_stands_once_in_a_stage(refused, small_spec):
    small_spec["mode"]["mixed"]["general"] = ["chat", "desk"]
    (line,) = refused()
    assert line.endswith(
        " mode.mixed: the source 'desk' occurs twice in the stage 'mixed'; name it once, as domain or as general"
    )


def test_a_source_is_not_mixed_into_itself(refused, small_spec):
    small_spec["mode"] = {"domain": {"sources": ["desk"]}}
    small_spec["mitigations"]["mixing"]["source"] = "desk"
    (line,) = refused()
    assert "the source 'desk' occurs twice in the stage 'domain'" in line


def test_what_a_mitigation_refuses_is_told_with_the_place_of_the_mitigation(refused, small_spec):
    small_spec["mode"] = {"domain": {"sources": ["desk"]}}
    (line,) = refused()
    place, _, rest = line.partition(" ")
    assert place.startswith("spec.json:")
    assert rest.startswith("mitigations.mixing: the stage 'domain' has no general source; ")


def test_what_a_mitigation_refuses_of_an_override_is_told_as_the_override(refused):
    (line,) = refused('mode={"general": {"sources": ["chat"]}}', 'mitigations={"mixing": {}}')
    assert line.startswith("--set mitigations={\"mixing\": {}}: the stage 'general' trains on general conversations")


def test_a_source_that_a_plugins_mode_makes_up_is_refused(refused, small_spec, bring):
    bring("modes", "single", single(StageSource("desk", "domain"), StageSource("nowhere", "general")))
    small_spec["mode"] = "single"
    (line,) = refused()
    assert line.endswith(" mode.single: the stage 'only' has no source 'nowhere'; add it to sources")


def test_shares_that_do_not_fit_together_are_refused(refused, small_spec, bring):
    class Greedy(Mode):
        def stages(self):
            parts = (StageSource("desk", "domain"), StageSource("chat", "general"))
            return (Stage("only", parts, {}, (Share(("desk",), 0.95),)),)

    bring("modes", "greedy", Greedy)
    small_spec["mode"] = "greedy"
    (line,) = refused()
    assert " mitigations: stage only: every source has a share, and the shares sum to 1.05; make them" in line


def test_each_of_several_general_sources_is_looked_up(planned, refused, small_spec):
    small_spec["mode"] = {"domain": {"sources": ["desk"]}}
    small_spec["mitigations"] = {"mixing": {"source": ["chat", "chit"]}}
    (line,) = refused()
    assert line.endswith("mitigations.mixing.source.1: there is no source 'chit'; did you mean 'chat'?")
    small_spec["sources"]["web"] = small_spec["sources"]["chat"]
    small_spec["mitigations"] = {"mixing": {"source": ["chat", "web"], "weights": {"chat": 3, "web": 1}}}
    assert planned().stages[0].shares == (Share(("chat", "web"), 0.1, weights=(3, 1)),)


def test_a_share_of_a_source_that_the_stage_lacks_is_refused_at_the_mode(refused, small_spec, bring):
    class Greedy(Mode):
        def stages(self):
            return (Stage("only", (StageSource("desk", "domain"),), {}, (Share(("chat",), 0.1),)),)

    bring("modes", "greedy", Greedy)
    small_spec |= {"mode": "greedy", "mitigations": {}}
    (line,) = refused()
    assert " mode.greedy: stage only: a share names 'chat', which is not a source of the stage; add it to the stage" in line


def test_a_mode_that_does_not_import_is_refused_by_name(refused, small_spec, small_registry):
    small_registry.add("modes", "gone", Component("Gone.", "no_such_module:Gone"), "acme")
    small_spec["mode"] = "gone"
    assert refused() == [
        "mode 'gone' of acme: cannot import 'no_such_module:Gone': ModuleNotFoundError: "
        "No module named 'no_such_module'; reinstall or fix that plugin"
    ]


# -- warnings ---------------------------------------------------------------------------------------------------------


def test_a_usual_spec_warns_of_nothing(planned):
    assert planned().warnings == ()


@pytest.mark.parametrize(
    ("override", "warning"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate is 0.001; usual is 1e-05 to 5e-05"),
        ("train.learning_rate=1e-6", "train.learning_rate is 1e-06; usual is 1e-05 to 5e-05"),
        ("train.epochs=10", "train.epochs is 10; usual is 1 to 3"),
        ("train.warmup_ratio=0.5", "train.warmup_ratio is 0.5; usual is 0.03 to 0.1"),
        ("train.weight_decay=1", "train.weight_decay is 1; usual is 0 to 0.1"),
        ("train.max_length=256", "train.max_length is 256; usual is 2048 to 4096"),
        ("evaluate.chat.role=domain", 'no suite has "role": "general", so forgetting is not measured'),
        ("sources.spare.lines.path=x", "the source 'spare' is not used"),
    ],
)
def test_what_is_out_of_the_ordinary_is_a_warning_and_no_error(planned, override, warning):
    assert planned(override).warnings == (warning,)


@pytest.mark.parametrize("setting", ["learning_rate=1e-5", "learning_rate=5e-5", "epochs=3", "weight_decay=0"])
def test_the_ends_of_a_usual_range_are_usual(planned, setting):
    assert planned(f"train.{setting}").warnings == ()


def test_epochs_that_steps_replace_are_not_warned_of(planned):
    assert planned("train.epochs=10", "train.steps=5").warnings == ()


def test_a_setting_out_of_range_in_two_stages_is_told_once(planned, small_spec):
    stages = [{"name": name, "domain": ["desk"], "general": ["chat"]} for name in ("one", "two")]
    stages[1]["train"] = {"learning_rate": 1e-2}
    small_spec["mode"] = {"continual": {"stages": stages}}
    assert planned("train.epochs=9").warnings == (
        "train.epochs is 9; usual is 1 to 3",
        "train.learning_rate is 0.01; usual is 1e-05 to 5e-05",
    )


def test_a_mitigation_moves_the_usual_range_of_a_setting(planned, small_spec, bring):
    bring("mitigations", "adapter", Mitigation, typical_ranges={"train.learning_rate": (1e-4, 1e-3)})
    small_spec["mitigations"]["adapter"] = {}
    assert planned("train.learning_rate=5e-4").warnings == ()
    assert planned().warnings == ("train.learning_rate is 2e-05; usual is 0.0001 to 0.001",)


def test_a_model_that_is_not_sent_to_mlflow_cannot_be_registered_there(planned, refused):
    (line,) = refused("track.register=desk-model")
    assert "no model is logged to MLflow, so none can be registered as 'desk-model'" in line
    assert 'set track.model to "files" or "transformers"' in line
    assert planned("track.register=desk-model", "track.model=files").stages


def test_a_usual_range_is_that_of_the_stages_own_mitigations(bring, planned):
    """What is usual beside an adapter is unusual for the stage that has none."""
    bring("mitigations", "narrow", Mitigation, typical_ranges={"train.learning_rate": (1e-4, 1e-3)})

    class Two(Mode):
        def stages(self):
            parts = (StageSource("desk", "domain"), StageSource("chat", "general"))
            return Stage("plain", parts), Stage("adapted", parts, mitigations={"narrow": {}})

    bring("modes", "two", Two)
    found = planned('mode={"two": {}}', "train.learning_rate=5e-4").warnings
    assert [one for one in found if "learning_rate" in one] == [
        "train.learning_rate is 0.0005; usual is 1e-05 to 5e-05"
    ]
    found = planned('mode={"two": {}}', "train.learning_rate=2e-5").warnings
    assert [one for one in found if "learning_rate" in one] == [
        "train.learning_rate is 2e-05; usual is 0.0001 to 0.001"
    ]
