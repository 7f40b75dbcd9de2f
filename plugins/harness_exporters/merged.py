"""The exporter `merged`: one model without an adapter, as safetensors with its tokenizer."""

from __future__ import annotations

from pathlib import Path

from harness import Component, ExportedModel, Exporter, ExportSource
from harness_exporters.model_folder import DTYPE_OPTION, TransformersModel, write_model_folder

COMPONENTS = {
    "merged": Component(
        summary="Merges an adapter into its base model: safetensors, with tokenizer and chat template.",
        factory="harness_exporters.merged:Merged",
        options=DTYPE_OPTION,
    )
}


class Merged(Exporter):
    """Writes the merged model."""

    def __init__(self, dtype: str) -> None:
        """Create an exporter. dtype: see the option of the component."""
        self._dtype = dtype

    def export(self, source: ExportSource, folder: Path) -> str:
        """Write the merged model and its tokenizer."""
        return write_model_folder(source, folder, self._dtype)

    def load(self, folder: Path, max_tokens: int) -> ExportedModel:
        """Load the folder with transformers."""
        return TransformersModel.from_folder(folder)
