"""A tokenizer for commands that load no model: the `tokenizers` backend, without transformers, which imports torch.

transformers builds a tokenizer in many ways: each class has its own rules for `tokenizer.json`, and versions differ. So
nothing of that is repeated here. The first command that needs a model's tokenizer loads it with transformers, and saves
a snapshot: the finished backend and its special tokens. Later commands read the snapshot, whose ids are equal because
it is the same backend. See docs/decisions/027-tokenizer-snapshots.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.model.chat_template import render_chat_template

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

REPEATED_METHODS = (
    *("__call__", "__len__", "__getattr__", "_encode_plus", "set_truncation_and_padding", "decode", "_decode"),
    *("get_vocab", "added_tokens_decoder", "added_tokens_encoder", "convert_ids_to_tokens", "convert_tokens_to_ids"),
    *("_convert_token_to_id_with_added_voc", "_convert_id_to_token", "special_tokens_map"),
    *("apply_chat_template", "get_chat_template", "backend_tokenizer"),
)
"""Methods of transformers' `TokenizersBackend` on which `LightTokenizer` relies. A class that overrides one of them has
no snapshot."""


@dataclass(frozen=True)
class TokenizerSettings:
    """What a tokenizer has besides its backend, as JSON types.

    Attributes:
        special_tokens: Name (`eos_token` …) -> token, see `SPECIAL_TOKEN_NAMES`.
        special_tokens_map: The variables that a chat template gets.
        chat_template: The chat template; name -> template if there are several; None if there is none.
        split_special_tokens: Whether special tokens in a text are plain text.
        published_pad_token: The padding token of the tokenizer's files.
    """

    special_tokens: Mapping[str, str]
    special_tokens_map: Mapping[str, Any]
    chat_template: str | Mapping[str, str] | None
    split_special_tokens: bool
    published_pad_token: str | None

    @classmethod
    def of_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> TokenizerSettings:
        """Return the settings of a tokenizer of transformers."""
        special_tokens = tokenizer.special_tokens_map
        published = tokenizer.init_kwargs.get("pad_token")
        return cls(
            special_tokens={
                name: str(special_tokens[name]) for name in SPECIAL_TOKEN_NAMES if special_tokens.get(name) is not None
            },
            special_tokens_map={
                name: [str(token) for token in value] if isinstance(value, (list, tuple)) else str(value)
                for name, value in special_tokens.items()
            },
            chat_template=tokenizer.chat_template,
            split_special_tokens=bool(tokenizer.split_special_tokens),
            published_pad_token=None if published is None else str(published),
        )


class EncodedText(dict[str, Any]):
    """The ids of a text, under the key and the attribute `input_ids`."""

    @property
    def input_ids(self) -> list[int]:
        """The token ids."""
        ids: list[int] = self["input_ids"]
        return ids


class LightTokenizer:
    """A tokenizer that is only read: it encodes, decodes and renders chat templates as the one of transformers does.

    An attribute that it does not have is that of transformers' tokenizer, which is then loaded.
    """

    is_fast = True

    def __init__(
        self,
        backend: Tokenizer,
        settings: TokenizerSettings,
        load_full_tokenizer: Callable[[], PreTrainedTokenizerBase],
    ) -> None:
        """Wrap a backend.

        Args:
            backend: The backend.
            settings: What the tokenizer has besides it.
            load_full_tokenizer: Loads the same tokenizer with transformers.
        """
        self.backend_tokenizer, self.settings = backend, settings
        self.chat_template = settings.chat_template
        self.special_tokens_map = dict(settings.special_tokens_map)
        self.init_kwargs = {"pad_token": settings.published_pad_token}
        for name in SPECIAL_TOKEN_NAMES:
            token = settings.special_tokens.get(name)
            setattr(self, name, token)
            setattr(self, f"{name}_id", None if token is None else self._token_id(token))
        self._load_full_tokenizer = load_full_tokenizer

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of transformers' tokenizer."""
        if name.startswith("__") or "_load_full_tokenizer" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return getattr(self._full_tokenizer, name)

    @cached_property
    def _full_tokenizer(self) -> PreTrainedTokenizerBase:
        return self._load_full_tokenizer()

    def __len__(self) -> int:
        """Return the size of the vocabulary, added tokens included."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        """Return True: an empty vocabulary is a tokenizer too."""
        return True

    def __call__(self, text: Any, add_special_tokens: bool = True, **options: Any) -> Any:
        """Return the ids of one text. Anything else is encoded by transformers' tokenizer."""
        if options or not isinstance(text, str):
            return self._full_tokenizer(text, add_special_tokens=add_special_tokens, **options)
        backend = self.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens != self.settings.split_special_tokens:
            backend.encode_special_tokens = self.settings.split_special_tokens
        return EncodedText(input_ids=backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> Any:
        """Return the text of one list of ids. Anything else is decoded by transformers' tokenizer."""
        is_list = isinstance(token_ids, (list, tuple)) and not (token_ids and isinstance(token_ids[0], (list, tuple)))
        if clean_up_tokenization_spaces is not False or options or not is_list:
            return self._full_tokenizer.decode(
                token_ids, skip_special_tokens, clean_up_tokenization_spaces=clean_up_tokenization_spaces, **options
            )
        return self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def get_vocab(self) -> dict[str, int]:
        """Return token -> id, added tokens included."""
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> added token."""
        tokens: dict[int, AddedToken] = self.backend_tokenizer.get_added_tokens_decoder()
        return tokens

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Text of an added token -> its id, by id."""
        return {token.content: index for index, token in sorted(self.added_tokens_decoder.items())}

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or the tokens of several."""
        if skip_special_tokens:
            return self._full_tokenizer.convert_ids_to_tokens(list(ids) if isinstance(ids, Sequence) else ids, True)
        to_token = self.backend_tokenizer.id_to_token
        return to_token(ids) if isinstance(ids, int) else [to_token(int(index)) for index in ids]

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """Return the chat template: the argument, else the tokenizer's. Of several: `tool_use` with tools, `default`.

        Raises:
            ValueError: There is none.
        """
        templates = self.settings.chat_template
        if isinstance(templates, str):
            return chat_template or templates
        named = templates or {}
        if chat_template is not None:
            return named.get(chat_template, chat_template)
        for name in ("tool_use", "default") if tools is not None else ("default",):
            if name in named:
                return named[name]
        raise ValueError("the tokenizer has no chat template")

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        **variables: Any,
    ) -> Any:
        """Return the text of a conversation; with `tokenize`, its ids, from transformers' tokenizer.

        Raises:
            jinja2.TemplateError: The template refuses the conversation.
            ValueError: There is no template, or no message.
        """
        if tokenize:
            return self._full_tokenizer.apply_chat_template(
                [dict(message) for message in conversation],
                tools=None if tools is None else [dict(tool) for tool in tools],
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        return render_chat_template(
            self.get_chat_template(chat_template, tools),
            conversation,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables={**self.special_tokens_map, **variables},
        )

    def _token_id(self, token: str) -> int | None:
        index: int | None = self.backend_tokenizer.token_to_id(token)
        unknown = self.settings.special_tokens.get("unk_token")
        return self.backend_tokenizer.token_to_id(unknown) if index is None and unknown is not None else index
