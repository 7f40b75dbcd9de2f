"""Silence the progress bars and warnings of libraries; the program shows its own."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Within the context, transformers shows no bars and logs only errors, and Python warnings are dropped.

    The previous settings are restored at the end.
    """
    from transformers.utils import logging

    verbosity, bars_were_enabled = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_were_enabled:
            logging.enable_progress_bar()
