"""The exporter `ollama`: a GGUF file with a Modelfile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import Component, ExportedModel, Exporter, ExportSource, HarnessError, TurnSeparators
from harness_exporters import gguf

COMPONENTS = {
    "ollama": Component(
        summary="A GGUF file with an Ollama Modelfile: template and stops.",
        factory="harness_exporters.ollama:Ollama",
        options=gguf.FORMAT_OPTION,
    )
}

LOADING_LINES = """```bash
ollama create {name} -f Modelfile
ollama run {name}
```
"""


class Ollama(Exporter):
    """Writes a GGUF file and a Modelfile. The file is loaded with llama.cpp, and prompted as the Modelfile says."""

    def __init__(self, format: str) -> None:
        """Create an exporter. format: see `gguf`."""
        self._gguf = gguf.Gguf(format)
        self._format = format
        self._source: ExportSource | None = None

    def check_available(self) -> None:
        """Check that llama.cpp can be called; see `Gguf`."""
        self._gguf.check_available()

    def export(self, source: ExportSource, folder: Path) -> str:
        """Write GGUF file and Modelfile.

        Raises:
            HarnessError: The template is not of the form that a Modelfile can express.
        """
        if source.separators is None:
            what = "the run's template depends on more than the roles of messages, which a Modelfile cannot express"
            raise HarnessError("export ollama", what, "use --to gguf: the file has the chat template itself")
        self._source = source
        gguf.write_gguf(source, folder, self._format)
        (folder / "Modelfile").write_text(build_modelfile(source, source.separators), encoding="utf-8")
        source.write_card(folder, LOADING_LINES.format(name=model_name(source.name)))
        return f"GGUF file in {self._format} with a Modelfile; ollama create {model_name(source.name)} -f Modelfile"

    def load(self, folder: Path, max_tokens: int) -> ExportedModel:
        """Load the file with llama.cpp; prompts are written by the separators of the Modelfile."""
        assert self._source is not None
        tolerance = gguf.FORMATS[self._format][2]
        return _OllamaModel(folder / gguf.MODEL_FILE, max_tokens, tolerance, self._source)


class _OllamaModel(gguf.LlamaCppModel):
    """A GGUF file that is prompted by a Modelfile."""

    def __init__(self, file: Path, max_tokens: int, tolerance: float, source: ExportSource) -> None:
        super().__init__(file, max_tokens, tolerance)
        self._source = source

    def encode_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the tokens of a prompt. Ollama lets the tokenizer begin the text."""
        separators = self._source.separators
        assert separators is not None
        text = separators.render_prompt(messages).removeprefix(self._source.begin_token)
        return self.tokenize(text, add_begin_token=True)

    def ends_answer(self, token: int) -> bool:
        """Return whether the file or the Modelfile ends an answer at the token."""
        text = self._llama.detokenize([token], special=True).decode(errors="replace")
        return super().ends_answer(token) or text in self._source.stops


def build_modelfile(source: ExportSource, separators: TurnSeparators) -> str:
    """Return the text of a Modelfile, with greedy decoding as in the run."""
    lines = [f"FROM ./{gguf.MODEL_FILE}", f'TEMPLATE """{build_go_template(separators, source.begin_token)}"""']
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in source.stops]
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"


def build_go_template(separators: TurnSeparators, begin_token: str = "") -> str:
    """Return the template of a conversation in Go's template language.

    Args:
        separators: What is between the contents of messages.
        begin_token: What the tokenizer writes itself, and the template does not.
    """
    system, start_user = "", _print(separators.start_user.removeprefix(begin_token))
    if separators.start_system is not None:
        system = _print(separators.start_system.removeprefix(begin_token)) + "{{ .Content }}{{ $previous = .Role }}"
    return (
        '{{ $previous := "" }}{{ range .Messages }}'
        f'{{{{ if eq .Role "system" }}}}{system}'
        f'{{{{ else if eq .Role "user" }}}}{{{{ if eq $previous "" }}}}{start_user}'
        f'{{{{ else if eq $previous "system" }}}}{_print(separators.system_user or "")}'
        f"{{{{ else }}}}{_print(separators.assistant_user)}{{{{ end }}}}"
        "{{ .Content }}{{ $previous = .Role }}"
        f"{{{{ else }}}}{_print(separators.user_assistant)}{{{{ .Content }}}}{{{{ $previous = .Role }}}}{{{{ end }}}}"
        f"{{{{ end }}}}{_print(separators.prompt_end)}"
    )


def model_name(run: str) -> str:
    """Return a name that Ollama accepts: lower-case letters, digits and hyphens."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in run.lower()).strip("-")


def _print(text: str) -> str:
    return "{{ " + _quoted(text) + " }}" if text else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
