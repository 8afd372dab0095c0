"""Print the oldest versions that users may have, from pyproject.toml, as pip constraints: what is declared is tested.

python tests/lower_bounds.py > oldest.txt && python -m pip install -c oldest.txt -e '.[test]' && python -m pytest
"""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [requirements for name, requirements in project["optional-dependencies"].items() if name != "test"]
for requirement in sorted({*project["dependencies"], *chain.from_iterable(extras)}):
    if bound := re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*>=\s*([\w.]+)", requirement):
        print("==".join(bound.groups()))  # noqa: T201  # it is a script
