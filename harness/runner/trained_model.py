"""The model of a finished run, loaded to be used: for `harness chat`, `generate` and `export`.

Only the run's folder and its base model are needed; the data of the run is not read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation.batch_support import BatchSupport
from harness.evaluation.context import BaseModelContext
from harness.evaluation.padding_probe import probe_batch_support
from harness.interfaces.template import Template
from harness.model import device, load, locate, save
from harness.model.position_limit import config_as_dict, position_limit
from harness.model.precision import autocast_context
from harness.registry import Registry
from harness.report.finished_run import load_run_json
from harness.types import Progress, no_progress
from harness.utils.find_run import RUN_SCHEME
from harness.utils.json_depth import load_json
from harness.utils.shell_commands import resume_command


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run with everything that it answers with.

    Attributes:
        run: The folder of the run.
        spec: Its spec, with defaults filled in.
        location: Where the model is stored.
        model: The model, in evaluation mode; a PEFT model if the run trained an adapter.
        tokenizer: Its tokenizer.
        template: The chat template of the run.
        batch_support: What the model's batches may look like.
        max_positions: Number of positions of the model; None if its config does not have it.
    """

    run: Path
    spec: Mapping[str, Any]
    location: locate.ModelLocation
    model: Any
    tokenizer: Any
    template: Template
    batch_support: BatchSupport
    max_positions: int | None

    @property
    def max_length(self) -> int:
        """Number of tokens of a conversation with its answer: the positions of the model, else `train.max_length`."""
        return self.max_positions or int(self.spec["train"]["max_length"])

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Within the context, the model computes in the precision of the run."""
        with autocast_context(self.model, self.spec["train"]["precision"]):
            yield

    def base_model(self, progress: Progress = no_progress) -> BaseModelContext:
        """Return a function whose result is a context with the model that the run started from.

        For an adapter it is the same model with the adapter off; otherwise a second model is loaded, once.

        Args:
            progress: Called while the second model is loaded.

        Raises:
            HarnessError: That model does not exist any more.
        """
        if save.is_peft_model(self.model):
            return lambda: save.adapter_disabled(self.model)
        model = load_start_model(self.spec, progress)
        return lambda: contextlib.nullcontext(model)


def load_trained_model(
    registry: Registry, run: Path, *, precision: str | None = None, progress: Progress = no_progress
) -> TrainedModel:
    """Load the model of a finished run.

    Args:
        registry: The components.
        run: The folder of the run.
        precision: See `resolve_dtype`; None: the precision in which the run evaluated the model,
            with TF32 if the run had it.
        progress: Called while files are hashed and loaded.

    Raises:
        HarnessError: The run has no model, or the model or its base cannot be loaded.
    """
    if not (run / "model").is_dir():
        hint = f"finish it first: {resume_command(run)} (or name another run)"
        raise HarnessError(str(run), "the run has no model", hint)
    spec = load_run_json(run, "spec.json")
    settings = {**spec["model"], "path": f"{RUN_SCHEME}{run.resolve()}", "revision": None}
    location = locate.resolve_model(settings, output=spec["output"], progress=progress)
    # A caller that asks for a precision compares numbers: TF32 would round them.
    device.set_tf32(precision is None and spec["train"].get("tf32", False))
    # Weights that were saved in float32 were evaluated in float32: 16 bits would round norms and embeddings.
    stored_in_float32 = location.base is None and stored_dtype(run / "model") == "float32"
    precision = precision or ("float32" if stored_in_float32 else spec["train"]["precision"])
    model = load.load_model(location, settings, precision=precision, progress=progress)
    model.requires_grad_(False)
    tokenizer = load.load_tokenizer(location, settings)
    template = create_template(registry, spec)
    limit = position_limit(config_as_dict(model.config))
    with autocast_context(model, spec["train"]["precision"]):
        support = probe_batch_support(model, tokenizer)
    return TrainedModel(
        run, spec, location, model, tokenizer, template, support, None if limit is None else limit.positions
    )


def load_start_model(spec: Mapping[str, Any], progress: Progress) -> Any:
    """Load the model that a run started from, in the precision of the run.

    Raises:
        HarnessError: It does not exist any more.
    """
    location = locate.resolve_model(spec["model"], output=spec["output"], progress=progress)
    return load.load_model(location, spec["model"], precision=spec["train"]["precision"], progress=progress)


def create_template(registry: Registry, spec: Mapping[str, Any]) -> Template:
    """Create the chat template that a filled spec names."""
    ((name, options),) = spec["template"].items()
    template: Template = registry.create("templates", name, options)
    return template


def stored_dtype(model_folder: Path) -> str | None:
    """Return the dtype that a saved model's config names."""
    try:
        config = load_json((model_folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # loading reports the error
    return config.get("dtype") or config.get("torch_dtype") if isinstance(config, dict) else None
