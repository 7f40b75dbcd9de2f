"""A chat template that the spec gives, inline or as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import HarnessError
from harness_templates.chat import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class JinjaTemplate(ChatTemplate):
    """The chat template of the spec. Raises HarnessError unless exactly one of `template` and `file` is given."""

    name = "jinja"

    def __init__(self, template: str | None, file: str | None, variables: Mapping[str, Any], date: str) -> None:
        super().__init__(variables, date)
        if (template is None) == (file is None):
            given = "both `template` and `file` are given" if file else "neither `template` nor `file` is given"
            raise HarnessError("template.jinja", given, "give one of them")
        self._source = template if file is None else _read(Path(file))

    def source(self, tokenizer: PreTrainedTokenizerBase) -> str:
        assert self._source is not None
        return self._source


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror})"
        raise HarnessError("template.jinja.file", what, "give the path of a chat template") from error
    except UnicodeDecodeError as error:
        raise HarnessError("template.jinja.file", f"{path} is not UTF-8", "save it as UTF-8") from error
