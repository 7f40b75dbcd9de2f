"""`python -m harness`: the same as the command `harness`; what `torchrun -m harness` starts."""

from __future__ import annotations

import sys

from harness.cli.main import main

sys.exit(main())
