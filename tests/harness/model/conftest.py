"""Fixtures of a tiny Llama as a GGUF file and as a wheel."""

from support.model_files import (  # noqa: F401
    cache_root,
    gguf_source,
    make_gguf,
    make_wheel,
    package_index,
    recorder,
    wheel_reference,
)
