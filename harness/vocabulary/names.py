"""How names of a spec look."""

from __future__ import annotations

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
