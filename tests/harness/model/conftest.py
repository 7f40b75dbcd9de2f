"""A tiny Llama as a GGUF file and as a wheel."""

from support.model_files import cache_root, gguf_source, index, make_gguf, make_wheel, reference_text, watch  # noqa: F401
