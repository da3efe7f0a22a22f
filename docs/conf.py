"""The site: these pages, the notebooks as they are, and the API. `make docs` builds it into build/docs."""

import re
import shutil
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import tsflora.models  # noqa: F401  (before anything imports timm)

ROOT = Path(__file__).parent.parent

project = "tsflora"
author = "the tsflora authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_title = "tsflora"
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings, as other renderers of Markdown make them
nb_execution_mode = "off"  # they train; the pipeline executes them
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "exclude-members": "model_config"}
default_role = "code"

linkcheck_timeout = 20
linkcheck_retries = 2


def lay_notebooks(app: Sphinx, _: object) -> None:
    """Copy each notebook beside the pages: the executed one where a pipeline left it, so that pictures show."""
    source, target = ROOT / "notebooks", Path(app.srcdir) / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    for notebook in sorted(source.rglob("*.ipynb")):
        place = notebook.relative_to(source)
        executed = [ROOT / "build" / folder / place for folder in ("notebooks", "digits/notebooks")]
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(next((path for path in executed if path.exists()), notebook), target / place)


def link_tables(_app: Sphinx, _page: str, text: list[str]) -> None:
    """Tables are no pages here: a link to one as Markdown leads to the same table as CSV."""
    text[0] = re.sub(r"(\]\(\.\./results/[^)]+)\.md\)", r"\1.csv)", text[0])


def escape_bars(*event: object) -> None:
    """Docstrings write magnitudes as |x|, which is a substitution to docutils."""
    lines = event[-1]
    assert isinstance(lines, list)
    lines[:] = [line.replace("|", "\\|") for line in lines]


def write_math(translator: HTML5Translator, node: nodes.math) -> None:
    """Formulas as MathML, which browsers draw by themselves: the site needs no network."""
    translator.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def write_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """As `write_math`, on lines of its own."""
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_math_block, None))
    app.connect("config-inited", lay_notebooks)
    app.connect("source-read", link_tables)
    app.connect("autodoc-process-docstring", escape_bars)
