"""What the components declare of themselves: summary, options, defaults. Nothing heavy is imported here."""

from __future__ import annotations

from harness_mitigations.declared import adapters, averaging, data, outputs, rehearsal, restraint, weights

DECLARATION_MODULES = (data, rehearsal, weights, outputs, adapters, restraint, averaging)
"""Modules with `COMPONENTS`, from name to declaration, by what the mitigations work on."""
