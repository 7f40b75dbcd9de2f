"""Likelihoods compared with lm-evaluation-harness on the same model and data; `make oracle` installs it."""

from __future__ import annotations

import json
import re

import pytest
import torch

from harness.errors import HarnessError
from harness.types import Example, Item, Message

pytestmark = pytest.mark.oracle
lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed; `make oracle` runs this")

NATS = 1e-4
WINDOW = 48
QUESTIONS = [
    {"question": "Where is the cat?", "choices": ["here", "over there", "on the mat"], "answer": 2},
    {"question": "Who?  ", "choices": ["a", "bb"], "answer": 0},
    {"question": "法国的首都是", "choices": ["巴黎", "里昂", "柏林 "], "answer": 0},
    {"question": "q" * 70, "choices": ["long questions are cut", "at their beginning"], "answer": 1},
]
TEXTS = [
    "A short one.",
    "天气很好，我们去公园玩。" * 6,
    "Two lines\nof text,  spaced.",
    "x" * (WINDOW + 1),
    "y" * WINDOW,
]
PROMPTS = ["Name a river.", "Say\nnothing", "好"]
TASKS = {
    "h_mc": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}", "target_delimiter": " ",
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True}
                        for name in ("acc", "acc_norm", "acc_bytes")],
    },
    "h_ppl": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "h_gen": {
        "output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{prompt}}",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}  # fmt: skip
ROWS = {"h_mc": QUESTIONS, "h_ppl": [{"text": text} for text in TEXTS], "h_gen": [{"prompt": one} for one in PROMPTS]}


@pytest.fixture(scope="module")
def lm_eval_run(tokenizer, tmp_path_factory):
    """Run lm-evaluation-harness on a tiny model with large weights; return the model and the results."""
    import yaml
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("oracle")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, task in TASKS.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, ROWS[name])) + "\n")
        files = {"test": str(folder / f"{name}.jsonl")}
        common = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **task}))
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={folder / 'model'},dtype=float32,max_length={WINDOW}",
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=1,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    return model, results, folder


def test_tasks_are_a_source_of_the_same_rows(lm_eval_run):
    from harness_sources.lm_eval_task import LmEvalSource

    rows = {name: [one.data for one in LmEvalSource(name, 0, str(lm_eval_run[2])).records()] for name in TASKS}
    assert rows["h_mc"] == [{**question, "task": "h_mc"} for question in QUESTIONS]
    assert rows["h_ppl"] == [{**row, "task": "h_ppl"} for row in ROWS["h_ppl"]]
    generated = [{"prompt": one, "completion": one, "task": "h_gen", "document": {"prompt": one}} for one in PROMPTS]
    assert rows["h_gen"] == generated
    (first, *_) = LmEvalSource("h_mc", 0, str(lm_eval_run[2])).records()
    assert first.location == "lm_eval:h_mc:[0]"
    with pytest.raises(HarnessError, match="lm_eval:h_no: there is no such task"):
        list(LmEvalSource("h_no", 0, str(lm_eval_run[2])).records())


@pytest.fixture
def evaluate(kit, tokenizer, metric, lm_eval_run):
    def run(rows, metrics, **settings):
        suite = kit.suite(plain=True, batch_size=3, **settings)
        return kit.evaluate(lm_eval_run[0], suite, rows, {name: metric(name) for name in metrics}, max_length=WINDOW)

    return run


def samples(results, task):
    return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


def test_multiple_choice_equals_lm_eval(evaluate, lm_eval_run):
    rows = [
        Example(
            str(number),
            (Message("user", one["question"]), Message("assistant", one["choices"][one["answer"]])),
            "quiz:1",
            choices=tuple(one["choices"]),
        )
        for number, one in enumerate(QUESTIONS)
    ]
    result = evaluate(rows, ["multiple_choice"])
    for item, sample in zip(result.items, samples(lm_eval_run[1], "h_mc"), strict=True):
        assert item.choice_lls == pytest.approx([float(ll) for ((ll, _),) in sample["resps"]], abs=NATS)
    expected = lm_eval_run[1]["results"]["h_mc"]
    for score in result.scores:
        assert score.value == pytest.approx(expected[f"{score.name},none"])
    assert [item.row_cut for item in result.items] == [False, False, False, True]


def test_rolling_likelihoods_equal_lm_eval(evaluate, lm_eval_run):
    rows = [Example(str(number), (Message("text", text),), "wiki:1") for number, text in enumerate(TEXTS)]
    result = evaluate(rows, ["bits_per_byte"])
    for item, sample in zip(result.items, samples(lm_eval_run[1], "h_ppl"), strict=True):
        assert -item.text_nll == pytest.approx(float(sample["resps"][0][0]), abs=NATS, rel=1e-7)
    for score in result.scores:
        expected = lm_eval_run[1]["results"]["h_ppl"][f"{score.name},none"]
        assert score.value == pytest.approx(expected, rel=1e-4)


def test_greedy_answers_equal_lm_eval(evaluate, lm_eval_run):
    rows = [
        Example(str(number), (Message("user", one), Message("assistant", "r")), "p:1")
        for number, one in enumerate(PROMPTS)
    ]
    result = evaluate(rows, ["exact_match"], max_new_tokens=8)
    for item, sample in zip(result.items, samples(lm_eval_run[1], "h_gen"), strict=True):
        # Theirs decodes to the first end-of-sequence token too, and strips special tokens.
        assert item.answer == sample["resps"][0][0]


def test_instructions_and_numbers_of_generation_tasks_equal_lm_eval(tmp_path, metric, monkeypatch):
    """Tasks with the scoring of ifeval and gsm8k, in one group, over answers that a model generates."""
    import yaml
    from harness_sources.lm_eval_task import LmEvalSource

    pytest.importorskip("langdetect", reason="langdetect is not installed; `make oracle` runs this")
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk, "download", lambda *args, **options: True)
    from lm_eval.tasks.ifeval import utils

    title = "detectable_format:title"
    rows = {
        "h_ifeval": [
            {"key": 1, "prompt": "Say a.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
            {"key": 2, "prompt": "Say b!", "instruction_id_list": ["keywords:letter_frequency", title],
             "kwargs": [{"letter": "e", "let_frequency": 1, "let_relation": "less than"}, {}]},
        ],
        "h_gsm": [{"question": "2 + 3?", "answer": "2 + 3 = 5\n#### 5"}, {"question": "7 * 6?", "answer": "#### 42"}],
    }  # fmt: skip
    texts = {"h_ifeval": ("{{prompt}}", "0"), "h_gsm": ("Question: {{question}}\nAnswer:", "{{answer}}")}
    for name, documents in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n")
        task = {
            "task": name, "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}},
            "doc_to_text": texts[name][0], "doc_to_target": texts[name][1],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "group.yaml").write_text(yaml.safe_dump({"group": "h_group", "task": list(rows)}))
    records = [record.data for record in LmEvalSource("h_group", 0, str(tmp_path)).records()]
    assert [record["task"] for record in records] == ["h_ifeval", "h_ifeval", "h_gsm", "h_gsm"]
    answers = ["a, b", "no\n<<t>>", "so it is 5.", "I do not know"]
    for record, answer in zip(records, answers, strict=True):
        document = record["document"]
        if record["task"] == "h_ifeval":
            data = {f"document.{key}": document[key] for key in ("instruction_id_list", "kwargs")}
            ours = metric("instructions").statistics(Item("a", "", "", answer, data=data))
            theirs = utils.process_results(document, [answer])
            assert ours["instruction_prompt"][0] == float(theirs["prompt_level_strict_acc"])
            assert ours["instruction_single"][0] == float(sum(theirs["inst_level_strict_acc"]))
        else:
            ours = metric("numeric_match").statistics(Item("a", "", record["completion"], answer))
            assert ours["numeric_match"][0] == float("5" in answer)


def test_scores_of_a_generation_task_equal_lm_eval(tmp_path, evaluate_task):
    """Answers that both generate, each cut, filtered and scored: the same scores for each filter."""
    theirs, ours = evaluate_task(tmp_path)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value), key
    assert len(set(theirs.values())) > 1


@pytest.fixture
def evaluate_task(kit, metric, lm_eval_run):
    """Return a function that evaluates a task with two filters by both; each returns (filter, score) -> value."""
    import yaml
    from harness_sources.lm_eval_task import LmEvalSource

    model, results, models = lm_eval_run

    def run(folder):
        from lm_eval.tasks import TaskManager

        # The first of the prompts is answered rightly by one filter, as the answers of this model are known.
        generated = [sample["resps"][0][0].split("e")[0] for sample in samples(results, "h_gen")]
        first = re.search(r"\S", "".join(generated)).group()
        documents = [{"prompt": prompt, "letters": first} for prompt in PROMPTS]
        (folder / "h_letters.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n")
        first_letter = [{"function": "regex", "regex_pattern": r"(\S)"}, {"function": "take_first"}]
        task = {
            "task": "h_letters", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
            "dataset_kwargs": {"data_files": {"test": str(folder / "h_letters.jsonl")}},
            "doc_to_text": "{{prompt}}", "doc_to_target": "{{letters}}",
            "generation_kwargs": {"until": ["e"], "do_sample": False, "max_gen_toks": 8},
            "filter_list": [
                {"name": "first letter", "filter": first_letter},
                {"name": "whole", "filter": [{"function": "take_first"}]},
            ],
            "metric_list": [
                {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
                {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True},
            ],
        }  # fmt: skip
        (folder / "h_letters.yaml").write_text(yaml.safe_dump(task))
        result = lm_eval.simple_evaluate(
            model="hf", model_args=f"pretrained={models / 'model'},dtype=float32,max_length={WINDOW}",
            tasks=["h_letters"], task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            batch_size=1, device="cpu", bootstrap_iters=0, log_samples=True,
        )  # fmt: skip
        filters = ("first letter", "whole")
        theirs = {(name, "exact_match"): result["results"]["h_letters"][f"exact_match,{name}"] for name in filters}
        rows = [
            Example(
                str(number),
                (Message("user", record.data["prompt"]), Message("assistant", record.data["completion"])),
                "p:1",
                data={"document": record.data["document"]},
            )
            for number, record in enumerate(LmEvalSource("h_letters", 0, str(folder)).records())
        ]
        suite = kit.suite(plain=True, batch_size=3, max_new_tokens=8)
        ours = {}
        for name in filters:
            options = {"task": "h_letters", "scores": ["exact_match"], "filter": name, "include": str(folder)}
            score = metric("lm_eval", **options)
            score.check_available()
            (value,) = kit.evaluate(model, suite, rows, {"lm_eval": score}, max_length=WINDOW).scores
            ours[name, value.name] = value.value
        return theirs, ours

    return run


def test_a_score_that_is_no_mean_is_refused(tmp_path, metric, evaluate_task):
    evaluate_task(tmp_path)
    options = {"task": "h_letters", "include": str(tmp_path)}
    with pytest.raises(HarnessError, match=r"no metric 'bleu' that is a mean over documents.*one of exact_match"):
        metric("lm_eval", scores=["bleu"], **options).check_available()
    with pytest.raises(HarnessError, match=r"no filter 'last'.*one of first letter, whole"):
        metric("lm_eval", scores=["exact_match"], filter="last", **options).check_available()
    with pytest.raises(HarnessError, match="there is no such task"):
        metric("lm_eval", task="h_other", scores=["exact_match"], include=str(tmp_path)).check_available()
