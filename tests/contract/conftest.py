"""Options of any registered component, derived from its declaration."""

from __future__ import annotations

import pytest

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VALID_OPTIONS = {
    "hub": {"name": "org/data"},
    "jinja": {"template": CHATML},
    "regex": {"pattern": "the"},
    "kl": {"source": "given"},
}
"""Options that a declaration cannot express: one of several is required, or a text must parse."""


def valid_value(option, tmp_path):
    """Return a value that is valid for an option without a default."""
    kinds = option.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "enum" in option:
        return option["enum"][0]
    if option.get("format") == "path":
        return str(tmp_path / "given.txt")
    if option.get("format") == "source":
        return "given"
    if "string" in kinds:
        return "given"
    if "integer" in kinds or "number" in kinds:
        return option.get("minimum", option.get("exclusiveMinimum", 0) + 1)
    if "boolean" in kinds:
        return True
    if "array" in kinds:
        return [valid_value(option["items"], tmp_path)]
    first = next(iter(option.get("anyOf", [{}])))
    wanted = [*option.get("required", ()), *first.get("required", ())]
    return {name: valid_value(option["properties"][name], tmp_path) for name in wanted}


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """Return the folder of a tiny random BERT whose vocabulary is letters."""
    import string

    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    pieces += [f"##{letter}" for letter in string.ascii_lowercase]
    BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(pieces), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def options(tmp_path, request):
    """Return a function that gives a component's options: each default, or a valid value where there is none."""

    def options(name, component):
        values = {key: option["default"] for key, option in component.options.items() if "default" in option}
        values |= {key: valid_value(component.options[key], tmp_path) for key in component.required}
        if name == "bertscore":
            values["model"] = str(request.getfixturevalue("encoder"))
        return values | VALID_OPTIONS.get(name, {})

    return options
