"""Inline code such as ``gca.inject(model)`` becomes a link to the reference of what it names."""

import re
from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode


def link_names(app: Any, doctree: nodes.document, page: str) -> None:
    """Link every name of the reference, except where it stands in a link or a title already."""
    known = app.env.get_domain("py").objects
    for literal in list(doctree.findall(nodes.literal)):
        found = re.match(r"gca(\.\w+)+", literal.astext())
        entry = known.get(found[0]) if found else None
        if entry and not isinstance(literal.parent, (nodes.reference, nodes.title)):
            link = make_refnode(app.builder, page, entry.docname, entry.node_id, literal.deepcopy(), found and found[0])
            literal.replace_self(link)


def setup(app: Any) -> dict[str, bool]:
    """Link once all pages are read."""
    app.connect("doctree-resolved", link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
