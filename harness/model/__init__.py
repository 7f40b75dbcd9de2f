"""Locate, load and save models."""

import logging

# peft imports bitsandbytes, which warns at its import, also in runs without it: on CPUs with AVX512-BF16 an optional
# kernel is missing. Its warnings on computing are about speed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
