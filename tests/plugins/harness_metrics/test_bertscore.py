"""BERTScore with tiny encoders built in code, compared with matching by hand."""

from __future__ import annotations

import json
import math
import random
import shutil

import pytest
import torch

from harness import HarnessError, Item

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "今", "天", "好"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
WINDOW = 12
PAIRS = [("the cat sat", "a dog sat on the mat"), ("今天好", "天今好"), ("ran", "the cat"), ("the the", "the")]


def save_encoder(folder, model, **settings):
    from transformers import BertTokenizer

    BertTokenizer(vocab=dict(VOCABULARY), **settings).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def build_bert(seed=0, **settings):
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=WINDOW, **{**sizes, **settings})
    return BertModel(config)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return the folder of a random BERT of four layers, whose weights are large enough for context to matter."""
    model = build_bert(initializer_range=0.5)
    return save_encoder(tmp_path_factory.mktemp("encoders") / "bert", model)


@pytest.fixture(scope="module")
def one_hot(tmp_path_factory):
    """Return the folder of a BERT with one-hot embeddings: the cosine of different words is -1 / (V - 1)."""
    model = build_bert(hidden_size=len(VOCABULARY), num_attention_heads=1)
    embeddings = model.embeddings
    with torch.no_grad():
        embeddings.word_embeddings.weight.copy_(torch.eye(len(VOCABULARY)))
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
    return save_encoder(tmp_path_factory.mktemp("encoders") / "one-hot", model)


@pytest.fixture
def bertscore(metric, encoder):
    return lambda folder=encoder, **options: metric("bertscore", model=str(folder), **options)


def scores_of_pair(metric, answer, reference):
    """Return precision, recall and F1 of one pair."""
    statistics = metric.statistics(Item("x", "", reference, answer))
    return tuple(metric.aggregate(name, statistics[name]) for name in metric.score_names)


def scores_by_hand(folder, layer, answer, reference):
    """Return precision, recall and F1 by loops over the tokens, as in the equations of the paper."""
    from transformers import BertModel

    model = BertModel.from_pretrained(folder).eval()

    def tokens(text):
        words = list(text) if "今" in text else text.split()
        ids = [VOCABULARY[word] for word in ["[CLS]", *words, "[SEP]"]]
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        return [vector.tolist() for vector in hidden]

    def cosine(first, second):
        dot = sum(x * y for x, y in zip(first, second, strict=True))
        return dot / math.sqrt(sum(x * x for x in first) * sum(y * y for y in second))

    ours, theirs = tokens(answer), tokens(reference)
    precision = [max(cosine(token, other) for other in theirs) for token in ours[1:-1]]
    recall = [max(cosine(token, other) for token in ours) for other in theirs[1:-1]]
    precision, recall = sum(precision) / len(precision), sum(recall) / len(recall)
    return precision, recall, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(("layer", "read"), [(None, 3), (0, 0), (2, 2), (4, 4)])
def test_scores_equal_greedy_matching_by_hand(bertscore, encoder, layer, read):
    metric = bertscore(layer=layer)
    for answer, reference in PAIRS:
        assert scores_of_pair(metric, answer, reference) == pytest.approx(
            scores_by_hand(encoder, read, answer, reference), abs=1e-6
        )
    assert f"|layer:{read}|" in metric.signature()


def test_one_hot_embeddings_give_the_closed_form(bertscore, one_hot):
    metric, miss = bertscore(one_hot, layer=0), -1 / (len(VOCABULARY) - 1)
    same, other = (2 + miss) / 3, (1 + miss) / 2
    assert scores_of_pair(metric, "the cat sat", "the dog sat") == pytest.approx((same, same, same))
    expected = same, other, 2 * same * other / (same + other)
    assert scores_of_pair(metric, "the the cat", "the dog") == pytest.approx(expected)
    assert scores_of_pair(metric, "cat ran", "the dog") == pytest.approx((miss, miss, 0.0)), (
        "no harmonic mean of what is below 0"
    )


@pytest.mark.parametrize("text", ["the cat sat on the mat", "今天好", "the 今天 cat", "cat", "not known to it"])
def test_identical_text_scores_1(bertscore, text):
    assert scores_of_pair(bertscore(), text, text) == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)


@pytest.mark.parametrize(("answer", "reference"), [("", "the cat"), ("the cat", ""), ("", ""), (" \n", "the")])
def test_text_without_tokens_scores_0(bertscore, answer, reference):
    assert scores_of_pair(bertscore(), answer, reference) == (0.0, 0.0, 0.0)


def test_the_best_reference_counts_for_each_score(bertscore):
    metric, (answer, *references) = bertscore(), ("the cat sat", "the", "the cat sat on the mat ran", "dog")
    each = [scores_of_pair(metric, answer, reference) for reference in references]
    statistics = metric.answer_statistics(answer, references)
    assert [statistics[name][0] for name in metric.score_names] == [max(column) for column in zip(*each, strict=True)]


def test_text_beyond_the_window_is_ignored_and_counted_as_unparsed(bertscore):
    metric = bertscore()
    fits, longer = " ".join(["cat"] * (WINDOW - 2)), " ".join(["cat"] * (WINDOW - 2) + ["dog"] * 40)
    assert scores_of_pair(metric, longer, fits) == pytest.approx((1.0, 1.0, 1.0))
    assert metric.is_parsed(Item("x", "", fits, fits))
    assert not metric.is_parsed(Item("x", "", fits, longer))
    assert not metric.is_parsed(Item("x", "", longer, fits))


def test_positions_numbered_after_the_padding_index_shorten_the_window(metric, tmp_path):
    from tokenizers import pre_tokenizers
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    vocabulary = {**special, **{token: 5 + at for at, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    RobertaTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(
        RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=14, pad_token_id=1, **sizes)
    ).save_pretrained(tmp_path)
    instance = metric("bertscore", model=str(tmp_path))
    assert [instance.is_parsed(Item("x", "", "a", "b" * length)) for length in (9, 10)] == [True, False], (
        "<s>, a space, </s>"
    )
    assert scores_of_pair(instance, "b" * 40, "b" * 40) == pytest.approx((1.0, 1.0, 1.0))


def test_the_score_does_not_depend_on_other_answers(bertscore):
    metric, pairs = bertscore(), [*PAIRS, ("mat on the mat", "the")]
    first = {pair: scores_of_pair(metric, *pair) for pair in pairs}
    random.Random(0).shuffle(pairs)
    assert {pair: scores_of_pair(metric, *pair) for pair in pairs} == first


def test_loading_the_encoder_restores_the_random_state(bertscore, encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(encoder, tmp_path / "headless")
    weights = load_file(tmp_path / "headless" / "model.safetensors")
    kept_weights = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept_weights) < len(weights)
    save_file(kept_weights, tmp_path / "headless" / "model.safetensors", metadata={"format": "pt"})
    metric = bertscore(tmp_path / "headless")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert scores_of_pair(metric, *PAIRS[0]) == scores_of_pair(bertscore(), *PAIRS[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_signatures_of_different_encoders_differ(bertscore, encoder, tmp_path):
    other = save_encoder(tmp_path / "bert", build_bert(seed=1))
    signatures = [bertscore().signature(), bertscore().signature(), bertscore(other).signature()]
    assert signatures[0] == signatures[1] != signatures[2]
    assert signatures[0].startswith("bertscore|model:bert@")
    lower = save_encoder(tmp_path / "cased" / "bert", build_bert(initializer_range=0.5), do_lower_case=False)
    assert bertscore(lower).signature() != signatures[0], "the tokenizer has a part in it"


def test_a_folder_without_an_encoder_is_refused_before_training(metric, bertscore, encoder, tmp_path):
    def refused(text, folder, **options):
        instance = metric("bertscore", model=str(folder), **options)
        with pytest.raises(HarnessError) as raised:
            instance.check_available()
        assert text in str(raised.value)
        assert len(raised.value.lines()) == 1
        assert raised.value.hint

    assert bertscore().check_available() is None
    refused("metrics.bertscore.model: roberta-large is not a folder of a model", "roberta-large")
    refused("metrics.bertscore.layer: is 5, but the encoder has 4 layers", encoder, layer=5)
    shutil.copytree(encoder, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    refused("has no weights", tmp_path / "bare")
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    (tmp_path / "t5" / "model.safetensors").touch()
    refused("is a t5, an encoder with a decoder", tmp_path / "t5")
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "no-such"}')
    refused("has a config.json that does not load", tmp_path / "t5")
    (tmp_path / "t5" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    refused("is a clip, which is not an encoder of text", tmp_path / "t5")


def test_an_encoder_with_missing_weights_is_refused(bertscore, encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(encoder, tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    kept_weights = {name: tensor for name, tensor in weights.items() if "layer.3" not in name}
    save_file(kept_weights, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HarnessError, match=r"metrics\.bertscore\.model: .*half lacks 16 of the weights"):
        scores_of_pair(bertscore(tmp_path / "half"), "the", "the")
    shutil.copytree(encoder, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(HarnessError, match=r"broken does not load"):
        scores_of_pair(bertscore(tmp_path / "broken"), "the", "the")


@pytest.mark.oracle
@pytest.mark.parametrize("layer", [1, 3, 4])
def test_scores_equal_those_of_bert_score(metric, tmp_path, layer):
    theirs = pytest.importorskip("bert_score", reason="bert_score is not installed; `make oracle` runs this")
    folder = save_encoder(tmp_path / "bert", build_bert(initializer_range=0.5), model_max_length=WINDOW)
    # None is blank: with transformers 5 their package, 0.3.13, ends with an AttributeError at the first empty text.
    pairs = [*PAIRS, ("the cat sat on the mat ran " * 9, "a dog sat"), ("unknown words", "mat")]
    expected_columns = theirs.score(
        *map(list, zip(*pairs, strict=True)), model_type=str(folder), num_layers=layer, batch_size=1
    )
    instance = metric("bertscore", model=str(folder), layer=layer)
    for pair, expected in zip(pairs, zip(*(column.tolist() for column in expected_columns), strict=True), strict=True):
        assert scores_of_pair(instance, *pair) == pytest.approx(expected, abs=1e-5), pair


def test_interval_has_a_closed_form_and_truncated_items_are_counted(bertscore):
    from harness.evaluation.scoring import score_items

    items = [Item(str(at), "", reference, answer, "eos") for at, (answer, reference) in enumerate(PAIRS)]
    items.append(Item("long", "", "the", "cat " * 40, "length"))
    metric = bertscore()
    precision, recall, f1 = score_items(items, {"bertscore": metric})
    each = [scores_of_pair(metric, item.answer, item.reference)[2] for item in items]
    prepared = {item.id: value for item, value in metric.prepare(items)}
    assert [prepared[item.id]["bertscore_f1"] for item in items] == each
    assert [value["complete"] for value in prepared.values()] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert f1.value == pytest.approx(sum(each) / len(each))
    assert (f1.method, f1.n, f1.counts["unparsed"]) == ("t", 5, 1)
    assert f1.low < f1.value < f1.high
    assert {token.signature for token in (precision, recall, f1)} == {metric.signature()}
