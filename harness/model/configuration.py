"""What a model's config files say of its function, beside its weights.

The same weights with other rotary scaling, or published with another generation config, are another model.
"""

from __future__ import annotations

from typing import Any

from harness.model.loading import PUBLISHED
from harness.model.saving import saveable

_ASIDE = frozenset(
    {
        # where it came from, who wrote it, and how it is loaded, which is told by the loaded model itself
        "_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype",
        "torch_dtype", "_attn_implementation", "_attn_implementation_internal", "attn_implementation",
        # switched by whoever trains or generates, and without influence on what comes out
        "use_cache", "_from_model_config", "gradient_checkpointing",
    }
)  # fmt: skip


def configs(model: Any) -> dict[str, Any]:
    """The model's config and generation config as plain values, such that a model that was trained or saved and loaded
    again has the same ones. Empty for a model that has none.

    The generation config is the one that was published with it. Of an adapted model they are the base model's.
    """
    made = {}
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        made["config"] = _plain(config.to_dict())
    ours: Any = getattr(model, "generation_config", None)
    if hasattr(ours, "to_dict"):
        published = getattr(model, PUBLISHED, None)
        made["generation"] = _plain((ours if published is None else saveable(published, ours)).to_dict())
    return made


def _plain(value: Any) -> Any:
    """The value in JSON's own types, without what says nothing of the function."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in sorted(value.items(), key=str) if key not in _ASIDE}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)
