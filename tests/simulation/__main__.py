"""Run the simulation: ``python -m tests.simulation --seeds 1000``."""

from __future__ import annotations

import sys

from .runner import main

sys.exit(main(sys.argv[1:]))
