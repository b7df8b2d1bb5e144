"""Configuration of the documentation, https://www.sphinx-doc.org/en/master/usage/configuration.html"""

from pathlib import Path

project = "sb3_mbrl"
author = "sb3_mbrl contributors"
copyright = f"2026, {author}"
release = (Path(__file__).parent.parent / "sb3_mbrl" / "version.txt").read_text().strip()
version = release

# No intersphinx: a build must not depend on other sites
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path: list[str] = []

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Docstrings have no types, as in Stable-Baselines3: they are taken from the annotations
autodoc_typehints = "description"
# No types without words: MBTQC's arguments are those of TQC and MBPO, which explain them
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"sb3_mbrl {release}"
