"""Settings of the site: sphinx-build docs docs/_build."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "LoRA and quantization you can read, prove and use"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"page_width": "70rem", "description": "Llama 3.1, LoRA and int8 by hand"}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
myst_heading_anchors = 3
