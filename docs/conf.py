"""Settings of Sphinx: ``sphinx-build -W --keep-going -b html docs build/docs``. Building needs no internet access."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import gca  # noqa: E402

project = "gca-attn"
author = "The gca-attn developers"
version = release = gca.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "links", "mathml"]
exclude_patterns = ["costs/*"]  # tables that other pages include
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the notebooks; the site shows the output stored in them

html_theme = "furo"
html_show_copyright = False
html_title = "gca-attn"
html_static_path = ["static"]
html_css_files = ["docs.css"]
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_custom_sections = ["Shape", "Reference"]

# Every reference has to resolve, but to other packages, whose servers a build should not depend on.
nitpicky = True
ELSEWHERE = (
    *("collections.abc.Callable", "collections.abc.Iterable", "collections.abc.Mapping", "pathlib.Path"),
    *("torch.Tensor", "torch.device", "torch.dtype", "torch.nn.modules.module.Module"),
)
nitpick_ignore = [("py:class", name) for name in (*ELSEWHERE, "gca.inject.Model")]  # the last is a type variable
