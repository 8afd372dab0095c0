"""Tests of the package with other tools. Each runs where its tool is installed, in an environment of its own."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("httpie") else ["test_httpie.py"]
