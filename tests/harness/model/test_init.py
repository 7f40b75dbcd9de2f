from __future__ import annotations

import pytest

import harness.model


def test_every_public_name_is_there_and_no_other():
    for name in harness.model.__all__:
        assert callable(getattr(harness.model, name))
    with pytest.raises(AttributeError, match=r"no attribute 'unload'"):
        harness.model.unload  # noqa: B018
