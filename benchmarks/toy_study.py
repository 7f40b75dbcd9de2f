"""Compare mitigations on a toy model that learns a synthetic language, is fine-tuned on another, and forgets the first.

    python benchmarks/toy_study.py [--folder runs/toy_study] [--output docs/study.json] [--plot docs/images/study.svg]
    python benchmarks/toy_study.py --table docs/study.json

Needs no download. A study that was interrupted is continued by the same command: finished runs are not run again.

Protocol. A decoder of 4 layers and width 128 is trained from random weights on language A and then fine-tuned on
language B, as in studies of fine-tuning on procedurally generated data (e.g. Jain et al., 2023, arXiv:2311.12786).
Both languages have the same words. A prompt names the language and three subjects, and the response has a clause for
each subject. Each language has its own table of which words follow which, and its own word order. The grammar is
unambiguous, so the lowest possible loss is known. Gain is the decrease of the response NLL on held-out rows of B,
forgetting the increase on held-out rows of A, in nats per token. Every arm has the same base model, rows, steps and
learning rate (lora: its own).

Choice. Each method but naive has one hyper-parameter and two values of it. One run for each value, with a seed of
its own, is evaluated on validation rows, which are not the rows of the result. Chosen is the value that forgets least,
of those that gain at least 95 % of what naive gains there. If no value does, it is the one that gains most.

Result. Each arm runs with four seeds, and is evaluated on test rows. Intervals are over seeds and items.

Expected, stated before the first run:

1. naive forgets most, and a lower learning rate forgets less at equal gain.
2. mixing and kl use rows of A. They forget less than the best control (the better of naive and the lower rate).
3. ewc uses rows of A too, for the Fisher information alone. It forgets less than l2sp, and more than mixing and kl.
4. l2sp, lora, freeze and reweight use no rows of A. No evidence that they forget less than the best control.
5. reweight gains least, since the words of B are unlikely under the base model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from method_study import (
    Method,
    choice_arms,
    choose_values,
    find_run,
    format_tables,
    read_versions,
    run_arms,
    summarize_arms,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import harness

NOUNS = (
    "ant bear cat crow deer dog duck eel fox frog goat hawk hen horse lion mole moth mouse owl pig seal toad wasp wolf"
)
VERBS = "bites calls feeds finds fears greets guards helps hears hides hunts joins kicks leads likes meets moves pulls"
ADJECTIVES = "big blue bold brave brown calm dark fast gray grim kind late loud old pale proud"
MARKERS = {"a": "alpha", "b": "beta"}
SUBJECTS = 3
"""Clauses of a response."""
ODDS = (0.7, 0.2, 0.1)
"""Probabilities of the three words that may follow a word."""

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
GAIN, FORGETTING = "b/response_nll", "a/response_nll"
CHOICE_SEED = 100


@dataclass(frozen=True)
class Size:
    """How large the study is.

    Attributes:
        seeds: Seeds of the result.
        base_steps: Optimizer steps of the base model, of 32 rows.
        steps: Optimizer steps of each arm, of 16 rows.
        rows: Rows by name of the source.
        layers: Layers of the model.
        width: Hidden size of the model.
        methods: The methods to compare; None for all.
    """

    seeds: int = 4
    base_steps: int = 400
    steps: int = 60
    rows: tuple[tuple[str, int], ...] = (
        *(("a_train", 6000), ("a_validation", 60), ("a_test", 100)),
        *(("b_train", 800), ("b_validation", 60), ("b_test", 100)),
    )
    layers: int = 4
    width: int = 128
    methods: tuple[str, ...] | None = None


TINY = Size(
    seeds=1,
    base_steps=20,
    steps=5,
    rows=tuple((f"{language}_{part}", 40) for language in "ab" for part in ("train", "validation", "test")),
    layers=1,
    width=32,
    methods=("lower-lr",),
)
KEPT_ROWS = 1000
"""Rows of A that mixing, kl and ewc may use."""


METHODS = {
    "lower-lr": Method("factor", (0.3, 0.1), {"mitigations.lr_scale": {"factor": None}}),
    "mixing": Method(
        "share",
        (0.1, 0.2),
        {
            "mitigations.mixing": {
                "share": None,
                "source": "a_kept",
                "answers": "model",
                "writing": {"prompts": 400, "max_new_tokens": 40},
            }
        },
    ),
    "kl": Method("strength", (1, 3), {"mitigations.kl": {"source": "a_kept", "rows": 8, "strength": None}}),
    "l2sp": Method("strength", (0.1, 1), {"mitigations.l2sp": {"strength": None}}),
    "ewc": Method("strength", (1, 10), {"mitigations.ewc": {"source": "a_kept", "strength": None}}),
    "lora": Method("learning_rate", (1e-3, 3e-3), {"mitigations.lora": {"rank": 8}, "train.learning_rate": None}),
    "freeze": Method("share", (0.5, 0.75), {"mitigations.freeze": {"share": None, "embeddings": False}}),
    "reweight": Method("floor", (0.01, 0.1), {"mitigations.reweight": {"power": "median", "floor": None}}),
}


# -- languages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Language:
    """A language: which words may follow a word, and the word order.

    Attributes:
        name: Key of `MARKERS`.
        verbs, objects, adjectives: Word -> the three words that may follow it, the most likely first: verbs of a
            subject, objects of a verb, adjectives of a noun.
    """

    name: str
    verbs: Mapping[str, Sequence[str]]
    objects: Mapping[str, Sequence[str]]
    adjectives: Mapping[str, Sequence[str]]

    def draw_row(self, subjects: Sequence[str], generator: random.Random) -> tuple[dict[str, str], float]:
        """Return a row for three subjects, and the NLL of its response under the grammar in nats."""
        clauses, nll = [], 0.0
        for subject in subjects:
            verb, verb_nll = _draw(self.verbs[subject], generator)
            noun, noun_nll = _draw(self.objects[verb], generator)
            phrases = []
            for word in (subject, noun):
                adjective, adjective_nll = _draw(self.adjectives[word], generator)
                present = generator.random() < 0.5
                nll += math.log(2) + adjective_nll * present
                order = (adjective, word) if self.name == "a" else (word, adjective)
                phrases.append(" ".join(order) if present else word)
            nll += verb_nll + noun_nll
            order = (phrases[0], verb, phrases[1]) if self.name == "a" else (verb, phrases[1], phrases[0])
            clauses.append(" ".join(order))
        prompt = f"{MARKERS[self.name]} : {' '.join(subjects)}"
        return {"prompt": prompt, "completion": " , ".join(clauses) + " ."}, nll


def _draw(words: Sequence[str], generator: random.Random) -> tuple[str, float]:
    """Draw one of three words by `ODDS`; return it and its NLL."""
    index = generator.choices(range(len(ODDS)), ODDS)[0]
    return words[index], -math.log(ODDS[index])


def build_language(name: str) -> Language:
    """Return a language. The same name gives the same language."""
    generator = random.Random(f"language {name}")
    nouns, verbs, adjectives = NOUNS.split(), VERBS.split(), ADJECTIVES.split()

    def table(words: Sequence[str], followers: Sequence[str]) -> dict[str, list[str]]:
        return {word: generator.sample(followers, len(ODDS)) for word in words}

    return Language(name, table(nouns, verbs), table(verbs, nouns), table(nouns, adjectives))


def write_rows(folder: Path, size: Size) -> dict[str, float]:
    """Write the sources; no prompt occurs twice.

    Returns:
        Source -> NLL of its responses under the grammar, in nats per row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    nll_by_source = {}
    for name in MARKERS:
        language, generator = build_language(name), random.Random(f"rows {name}")
        subjects = list(itertools.permutations(NOUNS.split(), SUBJECTS))
        generator.shuffle(subjects)
        for source, count in size.rows:
            if source[0] != name:
                continue
            drawn, subjects = subjects[:count], subjects[count:]
            rows, nll = zip(*(language.draw_row(each, generator) for each in drawn), strict=True)
            nll_by_source[source] = sum(nll) / count
            _write_lines(folder / f"{source}.jsonl", rows)
            if source == "a_train":
                _write_lines(folder / "a_kept.jsonl", rows[:KEPT_ROWS])
    return nll_by_source


def _write_lines(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# -- model and specs ---------------------------------------------------------------------------------------------------


def write_random_model(folder: Path, size: Size) -> None:
    """Write a random Llama, and a tokenizer with one token for each word."""
    words = [*f"{NOUNS} {VERBS} {ADJECTIVES}".split(), *MARKERS.values(), "user", "assistant", ",", ".", ":"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([text for word in words for text in (word, f" {word}")], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_spec(folder: Path, name: str, model: Path, domain: str, part: str) -> dict[str, Any]:
    """Return a spec without steps and arms.

    Args:
        folder: Folder of the study.
        name: Name of the run; its folder is in a folder of that name.
        model: Folder of the model.
        domain: The source that is trained.
        part: The held-out rows: `validation` or `test`.
    """
    sources = (domain, "a_kept", f"a_{part}", f"b_{part}")
    roles = {"b": "domain", "a": "general"}
    return {
        "name": name,
        "output": str(folder / name),
        "model": {"path": str(model)},
        "template": "chatml",
        "sources": {source: {"jsonl": {"path": str(folder / f"{source}.jsonl")}} for source in sources},
        "mode": {"domain": {"sources": [domain]}},
        "train": {"batch_size": 16, "max_length": 64, "precision": "float32", "learning_rate": 1e-3},
        "evaluate": {
            suite: {"source": f"{suite}_{part}", "role": role, "metrics": {"response_perplexity": {}}}
            for suite, role in roles.items()
        },
        "checks": {"near_duplicates": None, "contamination": None},
        "track": {"enabled": False},
    }


def build_choice_spec(folder: Path, model: Path, size: Size) -> dict[str, Any]:
    """Return the experiment in which each value of each method is an arm."""
    spec = build_spec(folder, "choice", model, "b_train", "validation")
    spec["seed"] = CHOICE_SEED
    spec["train"]["steps"] = size.steps
    spec["arms"] = {"named": choice_arms(methods(size)), "baseline": "naive", "gain": GAIN, "forgetting": FORGETTING}
    return spec


def build_study_spec(folder: Path, model: Path, size: Size, chosen: Mapping[str, float]) -> dict[str, Any]:
    """Return the experiment of the result: naive and each method with its chosen value, with all seeds."""
    spec = build_spec(folder, "study", model, "b_train", "test")
    evaluate_steps = max(1, size.steps // 6)
    spec["train"] |= {"steps": size.steps, "evaluate_steps": evaluate_steps, "evaluate_suites": ["a", "b"]}
    controls = ["naive", "lower-lr"]
    spec["arms"] = {
        "named": {"naive": {}, **{name: METHODS[name].arm(value) for name, value in chosen.items()}},
        "seeds": size.seeds,
        "baseline": controls,
        "gain": GAIN,
        "forgetting": FORGETTING,
    }
    return spec


def methods(size: Size) -> dict[str, Method]:
    """Return the methods of a study, without naive."""
    return {name: METHODS[name] for name in size.methods or METHODS}


# -- runs --------------------------------------------------------------------------------------------------------------


def train_base(folder: Path, size: Size) -> Path:
    """Train the base model on language A if that has not been done, and return the folder of its run."""
    run = find_run(folder, "base")
    if run is None:
        write_random_model(folder / "random", size)
        spec = build_spec(folder, "base", folder / "random", "a_train", "test")
        spec["train"] |= {"batch_size": 32, "steps": size.base_steps, "learning_rate": 2e-3}
        return Path(harness.run(spec, quiet=True).folder)
    if not harness.load_run(run).is_finished:
        harness.resume(run)
    return run


def run_experiment(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Run an experiment, or what is left of it, and return its `arms.json`."""
    report = run_arms(folder, spec, {"name": spec["name"], "arms": spec["arms"]})
    assert report is not None
    return report


# -- result ------------------------------------------------------------------------------------------------------------


def run_study(folder: Path, size: Size) -> tuple[dict[str, Any], Path]:
    """Run the study, or what is left of it.

    Returns:
        The result as plain data, and the folder of the experiment with the seeds.
    """
    folder = folder.resolve()
    lowest = write_rows(folder, size)
    base = train_base(folder, size)
    choice = build_choice_spec(folder, base / "model", size)
    choices = choose_values(run_experiment(folder, choice), methods(size))
    chosen = {name: each["value"] for name, each in choices.items()}
    report = run_experiment(folder, build_study_spec(folder, base / "model", size, chosen))
    experiment = find_run(folder, "study")
    assert experiment is not None
    items = harness.load_run(base).items("a")
    result = {
        "command": "python benchmarks/toy_study.py",
        "versions": read_versions(experiment, ("torch", "transformers")),
        "seeds": size.seeds,
        "base_steps": size.base_steps,
        "steps": size.steps,
        "items": dict(size.rows)["a_test"],
        "base_nll": float(items["nll"].sum() / items["tokens"].sum()),
        "lowest_nll": float(lowest["a_test"] * len(items) / items["tokens"].sum()),
        "choices": choices,
        "equal_gain": report["equal_gain"]["gain"],
        "limited_by": report["equal_gain"]["limited_by"],
        "arms": list(summarize_arms(report)),
    }
    return result, experiment


def main() -> None:
    """Run the study and write its result, or print the tables of a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/toy_study"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("docs/study.json"), help="file of the result")
    parser.add_argument("--plot", type=Path, default=Path("docs/images/study.svg"), help="file of the plot")
    parser.add_argument("--table", type=Path, help="print the tables of this result and run nothing")
    given = parser.parse_args()
    if given.table is None:
        result, experiment = run_study(given.folder, Size())
        given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(experiment / "plots" / "gain-forgetting.svg", given.plot)
    print(format_tables(json.loads((given.table or given.output).read_text(encoding="utf-8"))), end="")


if __name__ == "__main__":
    main()
