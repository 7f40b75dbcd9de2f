"""The base class of exporters: the trained model of a run in another form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness.interfaces import result_checks
from harness.interfaces.guard import GuardedComponent, ResultCheck

if TYPE_CHECKING:
    import numpy


LOADING_HEADING = "## Load the model"
"""The heading of the lines that load a model, in its model card."""

CARD_OF_MERGED_MODEL = {
    'library_name: "peft"': 'library_name: "transformers"',
    ', "lora"]': "]",
    "| adapter of the base model |": "| adapter, merged into the base model |",
}
"""What a model card says of an adapter -> of the model into which it was merged."""


@dataclass(frozen=True)
class TurnSeparators:
    r"""What a template writes between the contents of a conversation.

    For a system message S, two user messages U, V and an answer A, the prompt is::

        start_system S system_user U user_assistant A assistant_user V prompt_end

    Attributes:
        start_user: Before the first user message of a conversation without a system message.
        start_system: Before the system message; None: the template refuses one.
        system_user: Between the system message and the first user message.
        user_assistant: Between a user message and its answer.
        assistant_user: Between an answer and the next user message.
        prompt_end: After the last user message; the answer follows.
        end: After the last answer of a complete conversation.
        strips: Whether white space around contents is removed.
    """

    start_user: str
    start_system: str | None
    system_user: str | None
    user_assistant: str
    assistant_user: str
    prompt_end: str
    end: str
    strips: bool = False

    def render_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text of a prompt.

        Args:
            messages: Role and content; the last one is the user's. Without `start_system`, none is a system message.
        """
        text, previous = "", ""
        for message in messages:
            role, content = message["role"], message["content"]
            before = {
                ("", "system"): self.start_system,
                ("", "user"): self.start_user,
                ("system", "user"): self.system_user,
                ("user", "assistant"): self.user_assistant,
                ("assistant", "user"): self.assistant_user,
            }[previous, role]
            text += (before or "") + (content.strip() if self.strips else content)
            previous = role
        return text + self.prompt_end


@dataclass(frozen=True)
class ExportSource:
    """The model of a run, and everything that its export needs.

    Attributes:
        name: Name of the run.
        model: The folder `model/` of the run: a model or an adapter, with its tokenizer.
        card: The text of the model card, Markdown.
        chat_template: A Jinja chat template that renders prompts as the run did; None: there is none.
        separators: The same as text between turns; None: the template is not of this form.
        stops: The texts that end an answer, the end of turn first.
        begin_token: What the tokenizer puts before every text; "": nothing.
        tokenizer: The tokenizer, with the chat template.
        merge: Returns the model without an adapter in a dtype (`auto`: that of the base model). Its generation config
            stops at the end of turn.
    """

    name: str
    model: Path
    card: str
    chat_template: str | None
    separators: TurnSeparators | None
    stops: tuple[str, ...]
    begin_token: str
    tokenizer: Any
    merge: Callable[[str], Any] = field(compare=False)

    def write_card(self, folder: Path, loading: str, *, merged: bool = True) -> None:
        """Write README.md: the model card of the run, with other lines that load the model.

        Args:
            folder: The folder of the export.
            loading: Markdown that follows the heading.
            merged: Whether the export is a complete model, also if the run's result is an adapter.
        """
        before, _, after = self.card.partition(LOADING_HEADING)
        _, following, rest = after.partition("\n## ")
        if merged:
            for of_adapter, of_model in CARD_OF_MERGED_MODEL.items():
                before = before.replace(of_adapter, of_model, 1)
        text = f"{before}{LOADING_HEADING}\n\n{loading.strip()}\n{following}{rest}"
        (folder / "README.md").write_text(text, encoding="utf-8")


class ExportedModel(Protocol):
    """An exported model that was loaded again, to be compared with the run's model.

    Attributes:
        tolerance: Largest difference of the log-likelihood, in nats per token, that the number format explains.
    """

    tolerance: float

    def encode_prompt(self, messages: Sequence[Mapping[str, str]]) -> Sequence[int]:
        """Return the token ids of a prompt, by the chat template and the tokenizer of the export."""
        ...

    def logits(self, tokens: Sequence[int]) -> numpy.ndarray:
        """Return the logits after each token, float32, (T, V)."""
        ...

    def ends_answer(self, token: int) -> bool:
        """Return whether the token ends an answer."""
        ...


class Exporter(GuardedComponent):
    """A writer of a finished run's model, called by `harness export RUN --to NAME`.

    The export is loaded again and compared with the run's model: `export`, `load`, `publish`, in this order.
    """

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {
        "export": result_checks.check_string,
        "load": None,
        "publish": result_checks.check_string,
        "check_available": None,
    }
    required_members = ("export", "load")

    def export(self, source: ExportSource, folder: Path) -> str:
        """Write the model.

        Args:
            source: The run's model.
            folder: An empty folder to write to. It gets its final name when everything is done.

        Returns:
            What was written, as the beginning of a sentence, e.g. "merged model in bfloat16".

        Raises:
            HarnessError: The model cannot be exported.
        """
        raise NotImplementedError

    def load(self, folder: Path, max_tokens: int) -> ExportedModel:
        """Load what `export` has written, to be compared with the run's model.

        Args:
            folder: The folder that `export` has written to.
            max_tokens: Number of tokens of the longest row that is compared.

        Raises:
            HarnessError: It cannot be loaded.
        """
        raise NotImplementedError

    def publish(self, folder: Path) -> str:
        """Send the verified export to its destination, if there is one.

        Returns:
            What was done, as a part of a sentence; "": nothing.

        Raises:
            HarnessError: It cannot be sent.
            RunError: Sending failed.
        """
        return ""

    def check_available(self) -> None:
        """Check that everything the exporter needs is installed.

        Raises:
            HarnessError: Something is missing; the hint has the command that installs it.
        """
