"""``python -m tests.simulation --seeds 1000``; ``--seed 17 --trace`` replays one seed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from simulation.runner import main

if __name__ == "__main__":
    sys.exit(main())
