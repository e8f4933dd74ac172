"""Draw the figures of the documentation: ``python docs/make_figures.py``.

The diagram of imports is made from the import statements in ``gca/``; the others are laid out by hand.
"""

import ast
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

IMAGES = Path(__file__).with_name("images")
PACKAGE = Path(__file__).parents[1] / "gca"
MEDSEG = Path(__file__).parents[1] / "examples" / "medseg"

GREY, BLUE, ORANGE = ("#f2f4f7", "#98a2b3"), ("#e3effd", "#3b7dd8"), ("#fdecd8", "#d9822b")  # fill, line
TEXT, SOFT = "#1d2939", "#667085"
ROWS, COLUMNS = 66, 146  # heights of the two branches of coordinate layers


class Drawing:
    """Boxes, arrows and words at given places, as SVG."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="Helvetica, Arial, sans-serif" role="img">',
            f"<title>{title}</title>",
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',  # readable on dark pages as well
        ]

    def words(self, x: float, y: float, text: str, size: int = 13, colour: str = TEXT, anchor: str = "middle") -> None:
        """One line, centred on ``y``; ``C_g`` and ``A^h`` have a subscript and a superscript, as in the formulas."""
        text = text.replace("*", "\u00d7")  # the sign of multiplication
        text = re.sub(r"\b([A-Z])([_^])([a-z])([^_^]*?)(?=\b[A-Z][_^]|$)", self._raised(size), text)
        self.parts.append(
            f'<text x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">'
            f"{text}</text>"
        )

    @staticmethod
    def _raised(size: int) -> Callable[[re.Match[str]], str]:
        """A small letter below or above the line, and what follows it back on the line."""

        def tspans(found: re.Match[str]) -> str:
            letter, where, small, rest = found.groups()
            shift = (0.25 if where == "_" else -0.4) * size
            back = f'<tspan dy="{-shift:g}">{rest}</tspan>' if rest else ""
            return f'{letter}<tspan dy="{shift:g}" font-size="{0.75 * size:g}">{small}</tspan>{back}'

        return tspans

    def room(self, x: float, y: float, w: float, h: float, name: str, indent: float = 10) -> None:
        """A part of the code, named at the top, in which steps are drawn."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="8" fill="#fbfcfd" stroke="#d0d5dd"/>'
        )
        self.words(x + indent, y + 14, name, 12, SOFT, "start")

    def box(self, x: float, y: float, w: float, h: float, text: str, style: tuple[str, str] = GREY) -> None:
        """A box around its centre, with one or more lines of words."""
        fill, line = style
        self.parts.append(
            f'<rect x="{x - w / 2:g}" y="{y - h / 2:g}" width="{w:g}" height="{h:g}" rx="6" fill="{fill}" '
            f'stroke="{line}" stroke-width="1.5"/>'
        )
        lines = text.split("\n")
        for number, content in enumerate(lines):
            self.words(x, y + 16 * (number - (len(lines) - 1) / 2), content)

    def sign(self, x: float, y: float, text: str) -> None:
        """An operation of two tensors, in a circle."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="13" fill="#ffffff" stroke="{TEXT}" stroke-width="1.5"/>')
        self.words(x, y, text, 17)

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through points, with a tip at the last."""
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path d="{path}" fill="none" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#tip)"/>')

    def fork(self, y: float, start: float, middle: float, end: float) -> None:
        """From one place to the two branches, rows above and columns below."""
        self.arrow((start, y), (middle, y), (middle, ROWS), (end, ROWS))
        self.arrow((middle, y), (middle, COLUMNS), (end, COLUMNS))

    def branches(self, apart: float, y: float, start: float, middle: float, end: float, *, leave: bool) -> None:
        """Arrows between the two branches and a box, which they leave or reach ``apart`` above and below its centre."""
        for branch, side in ((ROWS, y - apart), (COLUMNS, y + apart)):
            first, last = (side, branch) if leave else (branch, side)
            self.arrow((start, first), (middle, first), (middle, last), (end, last))

    def gated(self, y: float, gates: float, x: float, output: tuple[float, str]) -> None:
        """Both gates times the input, which comes from ``x`` along the bottom, give the output."""
        self.arrow((gates, ROWS), (790, ROWS), (803, y - 11))
        self.arrow((gates, COLUMNS), (790, COLUMNS), (803, y + 11))
        self.sign(808, y, "*")
        self.arrow((822, y), (output[0], y))
        self.words(862, y, output[1], 14)
        self.arrow((x, 136), (x, 204), (808, 204), (808, y + 15))

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


def bottleneck() -> Drawing:
    """Where attention goes in a bottleneck of a ResNet."""
    d = Drawing(760, 170, "Attention in a bottleneck: after the last norm, before the residual sum")
    y = 62
    stations = [(28, "x"), (124, "conv1 1*1\nnorm, ReLU"), (262, "conv2 3*3\nnorm, ReLU"), (396, "conv3 1*1\nnorm")]
    d.words(28, y, "x", 16)
    for (x, _), (target, text) in pairwise(stations):
        d.arrow((x + (14 if x == 28 else 54), y), (target - 55, y))
        d.box(target, y, 106, 48, text)
    d.arrow((450, y), (473, y))
    d.box(532, y, 116, 48, "attention\nblock.se", ORANGE)
    d.arrow((590, y), (622, y))
    d.sign(636, y, "+")
    d.arrow((649, y), (672, y))
    d.box(704, y, 60, 36, "ReLU")
    d.arrow((28, y + 12), (28, 132), (636, 132), (636, y + 15))
    d.words(332, 148, "shortcut (or its downsampling)", 12, SOFT)
    d.words(532, 22, "the only new parameters", 12, ORANGE[1])
    return d


def grouped_coordinate() -> Drawing:
    """The layer of the paper, for one group of channels."""
    d = Drawing(900, 250, "Grouped coordinate attention, for one of G channel groups")
    y = 106
    d.box(62, y, 92, 58, "group X_g\nC_g * H * W", BLUE)
    d.fork(y, 108, 126, 146)
    d.box(218, ROWS, 144, 48, "rows: mean + max\nC_g * H * 1")
    d.box(218, COLUMNS, 144, 48, "columns: mean + max\nC_g * 1 * W")
    d.branches(8, y, 290, 306, 322, leave=False)
    d.box(382, y, 118, 58, "concatenated: F\nC_g * (H + W)")
    d.arrow((442, y), (464, y))
    d.box(540, y, 150, 92, "conv 1*1, C_g → C_g/r\nbatch norm, ReLU\nconv 1*1, C_g/r → C_g\nsigmoid: the gates", ORANGE)
    d.branches(20, y, 616, 640, 662, leave=True)
    d.box(714, ROWS, 102, 48, "rows A^h\nC_g * H * 1")
    d.box(714, COLUMNS, 102, 48, "columns A^w\nC_g * 1 * W")
    d.gated(y, 766, 62, (846, "Y_g"))
    d.words(430, 226, "one pair of convolutions serves all groups and both directions", 12, ORANGE[1])
    return d


def coordinate() -> Drawing:
    """Coordinate attention."""
    d = Drawing(900, 250, "Coordinate attention")
    y = 106
    d.box(58, y, 84, 58, "X\nC * H * W", BLUE)
    d.fork(y, 100, 118, 138)
    d.box(196, ROWS, 114, 48, "rows: mean\nC * H * 1")
    d.box(196, COLUMNS, 114, 48, "columns: mean\nC * 1 * W")
    d.branches(8, y, 254, 274, 294, leave=False)
    d.box(350, y, 110, 58, "concatenated\nC * (H + W)")
    d.arrow((406, y), (428, y))
    d.box(504, y, 150, 74, "conv 1*1, C → m\nbatch norm\nhard swish", ORANGE)
    d.branches(20, y, 580, 604, 624, leave=True)
    d.box(696, ROWS, 142, 48, "conv 1*1, m → C\nsigmoid: row gates", ORANGE)
    d.box(696, COLUMNS, 142, 48, "conv 1*1, m → C\nsigmoid: columns", ORANGE)
    d.gated(y, 768, 58, (848, "Y"))
    d.words(430, 226, "m = max(8, C/r)", 12, SOFT)
    return d


def squeeze_excitation() -> Drawing:
    """Squeeze and excitation."""
    d = Drawing(760, 150, "Squeeze and excitation")
    y = 54
    d.box(62, y, 84, 50, "X\nC * H * W", BLUE)
    d.arrow((104, y), (134, y))
    d.box(200, y, 130, 50, "mean over image\nC * 1 * 1")
    d.arrow((266, y), (296, y))
    d.box(376, y, 158, 62, "conv 1*1, C → C/r\nReLU\nconv 1*1, C/r → C", ORANGE)
    d.arrow((456, y), (486, y))
    d.box(556, y, 138, 50, "sigmoid\nC channel gates")
    d.arrow((626, y), (658, y))
    d.sign(673, y, "*")
    d.arrow((687, y), (716, y))
    d.words(732, y, "Y", 14)
    d.arrow((62, y + 25), (62, 122), (673, 122), (673, y + 15))
    return d


def cbam() -> Drawing:
    """CBAM."""
    d = Drawing(900, 190, "Convolutional block attention module: channels, then positions")
    y = 66
    d.box(52, y, 80, 50, "X\nC * H * W", BLUE)
    d.arrow((92, y), (110, y))
    d.box(174, y, 126, 62, "mean and max\nover image\nC * 1 * 1, twice")
    d.arrow((238, y), (256, y))
    d.box(330, y, 146, 74, "C → C/r → C on each,\nsum, sigmoid:\nC channel gates", ORANGE)
    d.arrow((404, y), (424, y))
    d.sign(438, y, "*")
    d.arrow((452, y), (482, y))
    d.words(466, y - 18, "X'", 14)
    d.box(546, y, 126, 62, "mean and max\nover channels\n2 * H * W")
    d.arrow((610, y), (630, y))
    d.box(702, y, 142, 62, "conv k*k, 2 → 1\nsigmoid:\nH * W gates", ORANGE)
    d.arrow((774, y), (796, y))
    d.sign(810, y, "*")
    d.arrow((824, y), (848, y))
    d.words(862, y, "Y", 14)
    d.arrow((52, y + 25), (52, 138), (438, 138), (438, y + 15))
    d.arrow((466, y), (466, 138), (810, 138), (810, y + 15))
    d.words(244, 156, "channels", 12, SOFT)
    d.words(640, 156, "positions", 12, SOFT)
    return d


def forward() -> Drawing:
    """The way of ``x`` through one forward of the layer of the paper."""
    d = Drawing(900, 330, "The way of x through one forward of grouped coordinate attention")
    d.room(10, 34, 880, 84, "gca/layers/grouped_coordinate.py", indent=500)
    d.room(10, 128, 880, 84, "gca/ops/autograd.py, dispatch.py", indent=228)
    d.room(10, 222, 880, 84, "gca/ops: one of plain, eager, numba, triton", indent=228)
    layer, ops, backend = 84, 178, 272
    d.words(112, 16, "x", 16)
    d.arrow((112, 26), (112, layer - 21))
    d.box(112, layer, 150, 38, "forward(x)")
    d.arrow((112, layer + 20), (112, ops - 27))
    d.box(112, ops, 170, 50, "pool: select\nthe backend", GREY)
    d.arrow((112, ops + 26), (112, backend - 27))
    d.box(112, backend, 170, 50, "means and maxima of\nrows and columns", BLUE)
    d.arrow((198, backend), (222, backend), (222, layer), (242, layer))
    d.box(374, layer, 260, 50, "_gates: mean + max, split into groups,\ntwo convolutions, sigmoid", ORANGE)
    d.arrow((505, layer), (620, layer), (620, ops - 27))
    d.box(620, ops, 180, 50, "gate: the same backend,\nby the link of the pool")
    d.arrow((620, ops + 26), (620, backend - 27))
    d.box(620, backend, 180, 50, "x times the gates of its\nrow and its column", BLUE)
    d.arrow((711, backend), (820, backend), (820, 28))
    d.words(820, 16, "y", 16)
    d.words(450, 320, "saved for backward: x and small tensors", 12, SOFT)
    return d


def modules(folder: str, text: str) -> str:
    """Words for a box, which begin with names of modules in a folder, up to a line break or colon; they must exist."""
    for name in re.findall(r"\w+", re.split(r"[:\n]", text)[0]):
        if not (module := MEDSEG / folder / f"{name}.py").is_file():
            raise FileNotFoundError(f"the figure names {module}, which does not exist")
    return text


def training() -> Drawing:
    """The way of a case through one training."""
    d = Drawing(900, 400, "The way of a case through one training")
    d.room(10, 10, 880, 70, "examples/medseg/command_line")
    stations = [(280, "options"), (450, "runs"), (620, "experiment"), (790, "pipeline: one run")]
    for (x, _), (target, _) in pairwise(stations):
        d.arrow((x + 66, 45), (target - 67, 45))
    for x, text in stations:
        d.box(x, 45, 130, 34, modules("command_line", text))
    columns = {"data": 110, "training": 340, "evaluation": 570, "figures": 790}
    for name, x in columns.items():
        width = 200 if name != "figures" else 180
        d.room(x - width / 2, 92, width, 298, f"medseg/{name}")
    steps = {
        "data": (
            "synapse, acdc, isic, ...\nlist the Cases",
            "dataset\nSplit by patient",
            "images, nifti\nread, check a Volume",
        ),
        "training": (
            "slices\nin an order by seed",
            "transforms\naugment, fit to a square",
            "trainer, losses\nkeep the best epoch",
        ),
        "evaluation": (
            "prediction\nslices, at native size",
            "scores\nDice, HD95",
            "report\nresults.json, table",
        ),
    }
    heights = (148, 232, 316)
    for name, texts in steps.items():
        x = columns[name]
        for number, (y, text) in enumerate(zip(heights, texts, strict=True)):
            fill = ORANGE if text.startswith("trainer") else BLUE if name == "data" else GREY
            d.box(x, y, 176, 54, modules(name, text), fill)
            if number:
                d.arrow((x, heights[number - 1] + 28), (x, y - 29))
    d.box(columns["figures"], heights[2], 156, 54, modules("figures", "overlays, results\nslices, curves"))
    d.arrow(
        (columns["data"] + 89, heights[2]), (225, heights[2]), (225, heights[0]), (columns["training"] - 90, heights[0])
    )
    d.arrow(
        (columns["training"] + 89, heights[2]),
        (455, heights[2]),
        (455, heights[0]),
        (columns["evaluation"] - 90, heights[0]),
    )
    d.arrow((columns["evaluation"] + 89, heights[2]), (columns["figures"] - 80, heights[2]))
    d.arrow(
        (columns["data"], heights[2] + 28),
        (110, 372),
        (470, 372),
        (470, heights[0] + 12),
        (columns["evaluation"] - 90, heights[0] + 12),
    )
    d.words(290, 362, "test cases", 12, SOFT)
    return d


def imports_within(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Which part of the package imports which, read from its import statements; sub-packages are one part each."""
    graph: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        found = graph.setdefault(part, set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module == "gca":
                names = [f"gca.{alias.name}" for alias in node.names]
            found |= {name.split(".")[1] for name in names if name.startswith("gca.")}
        found.discard(part)
    return graph


def height_of(part: str, graph: dict[str, set[str]]) -> int:
    """Steps down to a part that imports nothing of the package; endless where imports form a circle."""
    return max((1 + height_of(other, graph) for other in graph[part]), default=0)


def reachable(part: str, graph: dict[str, set[str]]) -> set[str]:
    """Everything that a part imports, through other parts as well."""
    return graph[part].union(*(reachable(other, graph) for other in graph[part]))


def imports() -> Drawing:
    """Which part of ``gca`` imports which, without the arrows that follow from others."""
    graph = imports_within()
    arrows = [
        (part, other)
        for part, others in graph.items()
        for other in sorted(others)
        if not any(other in reachable(between, graph) for between in others)
    ]
    width, step = 760, 84
    top = max(height_of(part, graph) for part in graph)
    place: dict[str, tuple[float, float]] = {}

    def below_importers(part: str) -> tuple[float, str]:
        above = [place[one][0] for one, other in arrows if other == part]
        return (sum(above) / len(above) if above else width, part)

    for height in range(top, -1, -1):
        row = sorted((part for part in graph if height_of(part, graph) == height), key=below_importers)
        for number, part in enumerate(row):
            place[part] = width * (number + 0.5) / len(row), 44 + step * (top - height)
    d = Drawing(width, 88 + step * top, "Imports within gca; an arrow points at what is imported")
    for part, other in arrows:
        (x0, y0), (x1, y1) = place[part], place[other]
        d.arrow((x0, y0 + 18), (x1 + 0.15 * (x0 - x1), y1 - 19))
    for part, (x, y) in place.items():
        d.box(x, y, 132, 36, f"gca.{part}", BLUE if (PACKAGE / part).is_dir() else GREY)
    return d


FIGURES = {
    "bottleneck.svg": bottleneck,
    "gca.svg": grouped_coordinate,
    "coordinate.svg": coordinate,
    "cbam.svg": cbam,
    "se.svg": squeeze_excitation,
    "forward.svg": forward,
    "training.svg": training,
    "imports.svg": imports,
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (IMAGES / name).write_text(str(draw()))
