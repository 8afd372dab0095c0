"""How Sphinx builds the documentation: ``sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import importlib.util

import baas_auth_plugins

project = "baas-auth-plugins"
author = "The baas-auth-plugins authors"
project_copyright = f"2026, {author}"
release = version = baas_auth_plugins.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["toc.empty_glob"]
exclude_patterns = ["_build"]

# Optional parts: their pages are built where the modules are.
for module, pages in {
    "baas_auth_plugins.testing": "reference/testing.md",
    "baas_auth_plugins.opentelemetry": "reference/opentelemetry.md",
}.items():
    if importlib.util.find_spec(module) is None:
        exclude_patterns.append(pages)

default_role = "code"  # docstrings have single backticks
autoclass_content = "both"  # what a constructor takes is in its docstring
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["opentelemetry"]
napoleon_use_ivar = True
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = "baas-auth-plugins"
html_static_path = ["_static"]
html_css_files = ["pictures.css"]
html_show_sourcelink = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
linkcheck_ignore = [r"http://$", r"http://127\.0\.0\.1.*", r"http://localhost.*", r"https://.*\.example.*"]
linkcheck_anchors = False
