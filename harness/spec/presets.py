"""Replace each preset in a spec by its suites and their sources.

The schema has the presets of all plugins under `presets` of `evaluate`, so that this needs no registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from harness.errors import HarnessError
from harness.spec.json_locations import JsonPath
from harness.spec_keys import evaluation


def expand_presets(
    document: Mapping[str, Any], schema: Mapping[str, Any], where: Callable[[JsonPath], str]
) -> dict[str, Any]:
    """Return a document whose presets are replaced by suites `NAME-KIND`, each with a source of the same name.

    Args:
        document: A valid document, with shorthands expanded.
        schema: The composed schema.
        where: Returns the location of a path of the document, for errors.

    Raises:
        HarnessError: A preset has no such suite, sets a key that each of its suites has for itself, or a suite or a
            source of the document has the name of one of the preset.
    """
    sources, suites = dict(document["sources"]), {}
    for name, settings in document.get("evaluate", {}).items():
        path: JsonPath = ("evaluate", name)
        preset_name = settings if isinstance(settings, str) else settings.get("preset")
        if preset_name is None:
            if "suites" in settings:
                hint = 'add "preset", or remove this key'
                raise HarnessError(where((*path, "suites")), "only a preset has suites", hint)
            suites[name] = settings
            continue
        overrides = {} if isinstance(settings, str) else dict(settings)
        overrides.pop("preset", None)
        preset = schema["properties"]["evaluate"]["presets"][preset_name]
        chosen = overrides.pop("suites", list(preset))
        for kind in chosen:
            if kind not in preset:
                near = get_close_matches(kind, preset, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"its suites are: {', '.join(preset)}"
                what = f"the preset {preset_name!r} has no suite {kind!r}"
                raise HarnessError(where((*path, "suites")), what, hint)
        for key in evaluation.KEYS_OF_PRESET_SUITES:
            if key in overrides:
                what = f"each suite of the preset {preset_name!r} has its own {key!r}"
                hint = "remove it, or write the suite itself: `harness validate --filled` shows it"
                raise HarnessError(where((*path, key)), what, hint)
        for kind in chosen:
            suite_name = f"{name}-{kind}"
            for section, known in (("sources", document["sources"]), ("evaluate", document["evaluate"])):
                if suite_name in known:
                    what = f"the preset {preset_name!r} in evaluate.{name} adds {suite_name!r}, which exists"
                    raise HarnessError(where((section, suite_name)), what, "rename it")
            sources[suite_name] = preset[kind]["source"]
            suites[suite_name] = {**preset[kind]["settings"], **overrides, "source": suite_name}
    if suites == document.get("evaluate", {}):
        return dict(document)
    return {**document, "sources": sources, "evaluate": suites}
