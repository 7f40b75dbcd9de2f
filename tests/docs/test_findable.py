"""The file names of the source lead a reader to 50 behaviours.

The list was made in three steps. First, 50 questions of users, plugin authors and maintainers were written without
a look at the repository. Then one file was guessed for each question from the file names alone. Last, each guess was
compared with the code: 33 hits, 11 half hits (a part of the answer is in another file) and 6 misses. Afterwards code
was moved to the guessed file or into a file of its own, where that helped. A later reader, who had not seen the list,
guessed 40 of 50; three more were then moved.

Each entry below has the question, the file with the answer, and a pattern of the code that answers it. Entries whose
first guess was not a hit have a comment: "guess" names the file of a miss, "half" explains a half hit.

The wording was shortened afterwards. Questions with an answer in two files now ask for one of them. Three questions
were wrong about the project: `check` verifies data, LoRA is a mitigation and not a mode, and specs have no fingerprint.

If a definition moves, change its entry, and choose a file whose name answers the question.
"""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT

BEHAVIOURS = [
    # -- users
    (
        "where does `--resume` decide which stages to skip",
        "harness/runner/resume.py",
        r"def finished_stage_totals\b",
    ),
    ("where are the defaults of `train`", "harness/spec_keys/training.py", r"^TRAIN_KEYS\b"),
    (
        "where is the list of subcommands",
        "harness/cli/main.py",  # half: the options of a command are in harness/cli/<command>.py
        r"^COMMANDS\b",
    ),
    (
        "where is an unknown key of the spec reported, with a suggestion",
        "harness/spec/schema_errors.py",  # guess, before this file was split off: harness/spec/spec.py
        r"def find_schema_errors\b",
    ),
    (
        "where are the numbers that `plan` prints computed",
        "harness/runner/plan_summary.py",  # half: harness/spec/plan.py
        r"def summarize_plan\b",
    ),
    ("where does `preview` render rows and masks", "harness/terminal/row_preview.py", r"def preview_rows\b"),
    (
        "where does `compare` build its table",
        "harness/terminal/comparison_table.py",  # half: harness/comparison/compare.py
        r"def pairs_table\b",
    ),
    ("where does `gate` decide pass or fail on a threshold", "harness/gate.py", r"def evaluate_gate\b"),
    (
        "where does `evaluate` evaluate a model without training it",
        "harness/runner/evaluate_model.py",  # half: harness/evaluation/evaluate.py
        r"def evaluate_model\b",
    ),
    ("where does `score` score stored predictions", "harness/evaluation/rescore.py", r"def score_run\b"),
    ("where is the HTML report written", "harness/report/html/write.py", r"def write_run_page\b"),
    ("where are the arms of an experiment expanded", "harness/spec/arms.py", r"def expand_arms\b"),
    (
        "where is it verified that a metric can be used on this machine",
        "harness/spec/preflight.py",
        r"\.check_available",
    ),
    ("where is forgetting computed", "harness/statistics/forgetting.py", r"def forgetting\b"),
    ("where does `schema` compose the JSON Schema of specs", "harness/spec/schema.py", r"def compose_schema\b"),
    # -- plugin authors
    ("where is the base class of a metric", "harness/interfaces/metric.py", r"^class Metric\b"),
    ("where is the base class of a source", "harness/interfaces/source.py", r"^class Source\b"),
    ("where is the base class of a mitigation", "harness/interfaces/mitigation.py", r"^class Mitigation\b"),
    ("where is the base class of a template", "harness/interfaces/template.py", r"^class Template\b"),
    ("where is the base class of a mode", "harness/interfaces/mode.py", r"^class Mode\b"),
    ("where are plugins discovered and registered", "harness/registry.py", r"def discover_plugins\b"),
    (
        "where are a component's options checked against its declaration",
        "harness/spec/schema.py",  # guess: harness/interfaces/component.py
        r"def _component_schema\b",
    ),
    ("where is a row's label mask computed", "harness/data/tokenization/label_mask.py", r"def mask_encodings\b"),
    ("where is the ChatML template rendered", "plugins/harness_templates/chatml.py", r"^class ChatML\b"),
    ("where does replay add rows of earlier stages", "plugins/harness_mitigations/replay.py", r"def add_replay\b"),
    ("where is the EWC mitigation", "plugins/harness_mitigations/ewc.py", r"^class Ewc\b"),
    (
        "where is the model wrapped with LoRA adapters",
        "plugins/harness_mitigations/lora.py",  # guess: plugins/harness_modes/modes.py
        r"^class Lora\b[\s\S]*def prepare_model\b",
    ),
    ("where is a JSONL file read", "plugins/harness_sources/json_sources.py", r"^class JsonlSource\b"),
    ("where is exact match computed", "plugins/harness_metrics/exact_match.py", r"^class ExactMatch\b"),
    (
        "where is the perplexity of held-out text computed",
        "plugins/harness_metrics/bits_per_byte.py",  # half: plugins/harness_metrics/response_perplexity.py
        r"^class BitsPerByte\b",
    ),
    # -- maintainers
    ("where is the MLflow metric name of a score built", "harness/tracking/metric_names.py", r"def .*score_name\b"),
    (
        "where is the paired interval of a difference computed",
        "harness/statistics/intervals.py",  # half: harness/report/paired_difference.py
        r"def paired_test\b",
    ),
    ("where is the spec loaded from JSON", "harness/spec/spec.py", r"def load_spec\b"),
    (
        "where is the trainer of a stage built",
        "harness/training/train_stage.py",  # half: harness/training/stage_trainer.py
        r"def train_stage\b",
    ),
    ("where are the model and tokenizer loaded", "harness/model/load.py", r"def load_model\b"),
    ("where are answers generated in batches", "harness/evaluation/generation.py", r"def generate_answers\b"),
    (
        "where is the result of a finished stage saved",
        "harness/runner/run_stages.py",  # half: harness/runner/folder.py
        r"def _?save_stage\b",
    ),
    (
        "where is the fingerprint of a stage computed",
        "harness/training/checkpoint_fingerprint.py",  # guess: harness/runner/metadata.py
        r"def \w*fingerprint\b",
    ),
    (
        "where are the random seeds of torch set",
        "harness/seeding.py",  # half, before the move: harness/training/train_stage.py
        r"def seed_mitigations\b",
    ),
    ("where is a corpus split into train and held-out", "harness/data/reading/splits.py", r"def split_corpus\b"),
    ("where is the newest checkpoint found", "harness/training/checkpoint.py", r"def latest_intact_checkpoint\b"),
    (
        "where is a JSON file written atomically",
        "harness/utils/atomic_write.py",  # half, before this file: harness/utils/json_files.py
        r"def atomic_write\b",
    ),
    (
        "where are package versions, commit and GPU recorded",
        "harness/runner/metadata.py",
        r"def describe_environment\b",
    ),
    ("where is the MLflow run started and reopened", "harness/tracking/run_opening.py", r"Reopen the MLflow run"),
    ("where are the project's error types", "harness/errors.py", r"^class HarnessError\b"),
    ("where are long rows cut at max_length", "harness/data/tokenization/tokenize.py", r"\[:max_length\]"),
    ("where are rows padded into a batch", "harness/training/collator.py", r"^class Collator\b"),
    ("where is the interval of one score computed", "harness/statistics/intervals.py", r"def estimate\b"),
    (
        "where are stages run in order",
        "harness/runner/run_stages.py",  # half: harness/runner/stage_loop.py, which trains one stage
        r"def run_stages\b",
    ),
    (
        "where are training rows in an evaluation suite detected",
        "harness/data/checks/contamination.py",
        r"def find_contamination\b",
    ),
]


@pytest.mark.parametrize(("question", "file", "pattern"), BEHAVIOURS, ids=[question for question, _, _ in BEHAVIOURS])
def test_behaviour_is_in_the_file(question, file, pattern):
    path = ROOT / file
    assert path.is_file(), f"{question}: {file} does not exist"
    assert re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE), f"{question}: {file} has no {pattern}"


def test_there_are_50_questions():
    assert len({question for question, _, _ in BEHAVIOURS}) == 50
