"""Greedy answers, compared with transformers and between batch sizes."""

from __future__ import annotations

import pytest
import torch

from harness.evaluation.generation import Decoding, StopConditions, UndefinedLogits, generate_answers, resolve_stops
from harness.evaluation.padding_probe import probe_batch_support

NO_STOPS = StopConditions(None, frozenset(), ())


def answers(model, tokenizer, prompts, *, stops=NO_STOPS, new=12, size=None, use_cache=True, lines=False):
    answers_by_key = {}
    generate_answers(
        model,
        tokenizer,
        dict(enumerate(prompts)),
        stops=stops,
        decoding=Decoding(new, batch_size=size or len(prompts), use_cache=use_cache, lines=lines),
        on_answer=lambda key, one: answers_by_key.update({key: one}),
    )
    return [answers_by_key[key] for key in range(len(prompts))]


@pytest.fixture
def prompts(tokenizer):
    draw = torch.Generator().manual_seed(1)
    lengths = (3, 11, 7, 20, 5, 2, 16, 9)
    return [torch.randint(5, len(tokenizer), (length,), generator=draw).tolist() for length in lengths]


@pytest.fixture
def sharp_model(tiny_model):
    """Return a model with large weights: answers depend on the prompt, and a wrong mask changes them."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(6.0)
    return tiny_model.eval()


def test_answers_equal_unbatched_transformers(tokenizer, sharp_model, prompts):
    ours = answers(sharp_model, tokenizer, prompts)
    for prompt, answer in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        out = sharp_model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert answer.text == tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
        assert (answer.finish, answer.token_count) == ("length", 12)
    assert len({answer.text for answer in ours}) > 4


@pytest.mark.parametrize("size", [1, 3, 8])
def test_answers_do_not_depend_on_the_batch(tokenizer, sharp_model, prompts, size):
    assert answers(sharp_model, tokenizer, prompts, size=size) == answers(sharp_model, tokenizer, prompts)


def test_right_padding_would_change_the_answers(tokenizer, sharp_model, prompts):
    # The same model, batch and mask with the padding on the wrong side: what the test above guards against.
    short, long = prompts[0], prompts[3]
    ids = torch.tensor([short + [tokenizer.pad_token_id] * (len(long) - len(short)), long])
    out = sharp_model.generate(
        input_ids=ids,
        attention_mask=(ids != tokenizer.pad_token_id).long(),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    wrong = tokenizer.decode(out[0, len(long) :], skip_special_tokens=True)
    assert answers(sharp_model, tokenizer, [short])[0].text != wrong


def test_generation_config_is_ignored(tokenizer, sharp_model, prompts):
    before = answers(sharp_model, tokenizer, prompts)
    sharp_model.generation_config.update(do_sample=True, temperature=3.0, repetition_penalty=4.0, max_new_tokens=2)
    assert answers(sharp_model, tokenizer, prompts) == before


def test_greedy_draws_no_random_number(tokenizer, sharp_model, prompts):
    state = torch.get_rng_state()
    answers(sharp_model, tokenizer, prompts)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def stop_of_fourth(sharp_model, prompts):
    """Return stops that end the answer to the fourth prompt after at most five tokens."""
    ids = torch.tensor(prompts[3:4])
    answer = sharp_model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    return StopConditions(None, frozenset({int(answer[0, -1])}), ())


@pytest.mark.slow
@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize(("size", "rows"), [(3, None), (8, None), (3, (2, 3, 4))])
def test_rows_that_end_leave_and_waiting_ones_join_without_effect_on_others(
    tokenizer, sharp_model, prompts, stop_of_fourth, size, rows, lines
):
    prompts = prompts if rows is None else [prompts[row] for row in rows]
    free = answers(sharp_model, tokenizer, prompts, size=1)
    seen = []
    handle = sharp_model.model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"].shape), with_kwargs=True
    )
    stopped = answers(sharp_model, tokenizer, prompts, stops=stop_of_fourth, size=size, lines=lines)
    handle.remove()
    assert {answer.finish for answer in stopped} >= {"stop", "length"}
    for before, after in zip(free, stopped, strict=True):
        assert before.text.startswith(after.text)
        assert (before == after) == (after.finish == "length")
    steps = [len_rows for len_rows, columns in seen if columns == 1]
    assert max(steps) == size if len(prompts) >= size else len(prompts)
    if len(prompts) > size:  # a waiting row joined before the whole first batch had ended
        assert len(steps) < 12 * -(-len(prompts) // size) - 1 + size
    if rows is not None:
        assert steps[-1] < size
    if lines:
        first = prompts[:size]
        assert seen[0] == (1, sum(map(len, first)))


REFILLED = ["llama", "mistral", "gemma2", "gpt2", "bloom", "mixtral", "qwen3_next", "mamba"]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFILLED)
def test_answers_of_an_architecture_do_not_depend_on_joining_rows(tokenizer, prompts, name):
    from support.architectures import build_architecture

    model = build_architecture(name, tokenizer)
    support = probe_batch_support(model, tokenizer)
    stops = StopConditions(None, frozenset(range(5, len(tokenizer), 7)), ())  # answers of very different lengths
    alone = [answers(model, tokenizer, [prompt], stops=stops, new=24, use_cache=False)[0] for prompt in prompts]
    assert len({answer.token_count for answer in alone}) > 1
    size = 3 if support.left_padding else 1
    options = {"use_cache": support.cache, "lines": support.lines}
    assert answers(model, tokenizer, prompts, stops=stops, new=24, size=size, **options) == alone


def test_positions_start_at_the_prompt(tokenizer, prompts):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    model.eval()
    assert answers(model, tokenizer, prompts, size=1) == answers(model, tokenizer, prompts)


def test_model_without_position_ids_gets_its_mask(tokenizer, prompts):
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4)).eval()
    with torch.no_grad():
        model.transformer.word_embeddings.weight.mul_(40.0)
    assert answers(model, tokenizer, prompts, size=1) == answers(model, tokenizer, prompts)


def test_adapter_is_used(tokenizer, sharp_model, prompts):
    from peft import LoraConfig, get_peft_model

    before = answers(sharp_model, tokenizer, prompts)
    torch.manual_seed(0)
    model = get_peft_model(
        sharp_model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    ).eval()
    after = answers(model, tokenizer, prompts)
    assert after != before
    assert answers(model, tokenizer, prompts, size=1) == after
    with model.disable_adapter():
        assert answers(model, tokenizer, prompts) == before


@pytest.mark.parametrize(
    ("said", "stops", "text", "finish"),
    [
        ("hello", ("<|im_end|>",), "hello", "stop"),
        ("hello", (), "hello", "length"),
        ("yes. Human: no", ("Human:",), "yes. ", "stop"),
        ("abcabd", ("cab", "bd"), "ab", "stop"),
        ("天气很好。再见", ("。",), "天气很好", "stop"),
        ("", ("<|im_end|>",), "", "empty"),
        (" \n", ("<|im_end|>",), " \n", "empty"),
        ("Human: no", ("Human:",), "", "empty"),
        ("x" * 30, ("<|im_end|>",), "x" * 24, "length"),
    ],
)
def test_stop_conditions_end_an_answer(tokenizer, kit, said, stops, text, finish):
    template = kit.template(*stops) if stops else kit.template("never")
    prompt = tokenizer(f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    (answer,) = answers(kit.echo(), tokenizer, [prompt], stops=resolve_stops(template, tokenizer), new=24)
    assert (answer.text, answer.finish) == (text, finish)


def test_eos_is_distinguished_from_template_stops(tokenizer, kit):
    stops = resolve_stops(kit.template("<|im_end|>", "</s>", "Human:", "\n"), tokenizer)
    assert stops.eos_id == tokenizer.eos_token_id
    assert stops.token_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    # A line break is one token here, but text may hold it within other tokens elsewhere: it is watched for as text.
    assert stops.strings == ("Human:", "\n")


def test_eos_token_gives_finish_reason_eos(tokenizer, kit):
    ended = StopConditions(tokenizer.convert_tokens_to_ids("<|im_end|>"), frozenset(), ())
    prompt = tokenizer("<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    (answer,) = answers(kit.echo(), tokenizer, [prompt], stops=ended)
    assert (answer.text, answer.finish, answer.token_count) == ("yes", "eos", 4)


def test_no_token_of_a_model_without_numbers_is_passed_on(tokenizer, tiny_model, prompts):
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    seen = []
    with pytest.raises(UndefinedLogits, match=r"^chat: the outputs of the model are not numbers"):
        generate_answers(
            tiny_model.eval(),
            tokenizer,
            {0: prompts[0]},
            stops=NO_STOPS,
            decoding=Decoding(4, where="chat"),
            on_answer=lambda key, answer: seen.append(key),
            on_token=lambda key, tokens: seen.append(key),
        )
    assert seen == []
