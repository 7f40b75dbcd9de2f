"""The contract of exporters."""

from __future__ import annotations

from pathlib import Path

from harness.errors import ComponentError, HarnessError
from harness.interfaces.exporter import ExportSource, TurnSeparators
from harness.testing.component_under_test import CheckSkipped, ComponentUnderTest, require
from harness.utils.file_digests import sha256_of_file
from harness.utils.silence import silence_libraries

MAX_TOKENS = 64


def check_export(subject: ComponentUnderTest) -> None:
    """It writes files, says what it wrote, leaves the run as it is, and loads what it wrote."""
    exporter = subject.create()
    model, folder = subject.folder / "run" / "model", subject.folder / "export"
    folder.mkdir()
    with silence_libraries():
        subject.build_model().save_pretrained(model)
        subject.tokenizer.save_pretrained(model)
    before = _digests(model)
    try:
        exporter.check_available()
        text = exporter.export(_build_source(subject, model), folder)
        written = _digests(folder)
        exported = exporter.load(folder, MAX_TOKENS)
        tokens = list(exported.encode_prompt([{"role": "user", "content": "What is tea?"}]))
        logits = exported.logits(tokens)
    except ComponentError:
        raise
    except HarnessError as error:
        raise CheckSkipped(f"it cannot export the tiny model here: {error.what}; {error.hint}") from None
    require(_digests(model) == before, "it changes the model of the run")
    require(written, "it writes no file")
    require(text.strip() and "\n" not in text, f"it returns {text!r}, not one sentence")
    require(tokens and all(isinstance(token, int) for token in tokens), "encode_prompt gives no list of token ids")
    require(
        len(logits.shape) == 2 and logits.shape[0] == len(tokens), f"logits has the shape {logits.shape}, not (T, V)"
    )
    require(exported.tolerance > 0, "the tolerance is not a positive number of nats per token")
    require(isinstance(exported.ends_answer(tokens[-1]), bool), "ends_answer returns neither True nor False")


def _build_source(subject: ComponentUnderTest, model: Path) -> ExportSource:
    """Return a tiny Llama with ChatML, as the runner gives it to an exporter."""
    separators = TurnSeparators(
        start_user="<|im_start|>user\n",
        start_system="<|im_start|>system\n",
        system_user="<|im_end|>\n<|im_start|>user\n",
        user_assistant="<|im_end|>\n<|im_start|>assistant\n",
        assistant_user="<|im_end|>\n<|im_start|>user\n",
        prompt_end="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>\n",
    )
    return ExportSource(
        name="tiny",
        model=model,
        card="# tiny\n",
        chat_template=str(subject.tokenizer.chat_template),
        separators=separators,
        stops=("<|im_end|>",),
        begin_token="",
        tokenizer=subject.tokenizer,
        merge=lambda dtype: subject.build_model(),
    )


def _digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): sha256_of_file(file) for file in files}


CHECKS = (check_export,)
