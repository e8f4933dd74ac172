from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from medseg.data.acdc import ACDC
from medseg.data.dataset import Benchmark, Case, Paper, Volume
from medseg.data.isic import isic
from medseg.errors import RunError
from medseg.evaluation.report import collect, table, table_of_runs
from medseg.evaluation.scores import evaluate, summarize
from medseg.figures.results import draw_bars

TWO = ("circle", "square")
SCANS = replace(ACDC, classes=TWO, paper=None)
PHOTOGRAPHS = replace(isic(2018), classes=TWO, paper=None)
ONE_CLASS = replace(isic(2018), paper=None)
SOME = Paper("Table 9", {"circle": 91.5}, {"hd95": (1.25, 0.5), "iou": (81.25, 0.5)})  # much is not printed
OWN = pytest.mark.parametrize("benchmark", [SCANS, PHOTOGRAPHS, ONE_CLASS], ids=["scans", "photographs", "one class"])


def summary_of(benchmark: Benchmark) -> dict[str, Any]:
    channels = 3 if benchmark.intensity == "rgb" else 1
    label = np.zeros((1 if channels == 3 else 2, 8, 8), np.uint8)
    label[:, 1:4, 1:4] = 1
    label[:, 5:7, 5:7] = len(benchmark.classes)
    volume = Volume("case", np.zeros((len(label), channels, 8, 8), np.uint8), label)
    return summarize(
        benchmark,
        evaluate(benchmark, [Case("case", "case", lambda: volume)], lambda _: label, description="Scoring"),
    )


def tables_of(benchmark: Benchmark) -> tuple[str, dict[str, Any], str]:
    summary = summary_of(benchmark)
    result = {"settings": {"seed": 1, "fold": None}, "data": {"fingerprint": "f"}, "test": {"summary": summary}}
    collected = collect(benchmark, [result, result])
    return table(benchmark, summary, "Heading"), collected, table_of_runs(benchmark, collected)


@OWN
def test_without_a_paper_none_is_mentioned(benchmark: Benchmark) -> None:
    one, collected, several = tables_of(benchmark)
    for text in (one, several):
        assert "paper" not in text.lower()
        assert "100.00" in text
        assert all(line == line.rstrip() for line in text.splitlines())
        assert all(name in text for name in benchmark.classes)
    assert "paper" not in collected


@OWN
def test_bars_without_a_paper(benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    bar = Axes.bar

    def record(self: Axes, *args: Any, **kwargs: Any) -> Any:
        drawn.append(kwargs["label"])
        return bar(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "bar", record)
    draw_bars(benchmark, summary_of(benchmark), tmp_path / "alone.png", "Title")
    assert drawn == ["this run"]
    draw_bars(replace(benchmark, paper=SOME), summary_of(benchmark), tmp_path / "beside.png", "Title")
    assert drawn[1:] == ["this run", "paper"]


@OWN
def test_figures_that_the_paper_does_not_print_are_dashes(benchmark: Benchmark) -> None:
    one, collected, several = tables_of(replace(benchmark, paper=SOME))
    for text in (one, several):
        assert "Paper: Table 9." in text
    rows = one.splitlines()
    if benchmark.intensity == "rgb":
        assert [row.split() for row in rows if row.startswith("paper")] == [["paper", "81.25", "-", "-", "-", "-"]]
        assert [row.split()[-3:] for row in several.splitlines() if row.startswith("iou")] == [["81.25", "±", "0.50"]]
    else:
        last = {row.split()[0]: row.split()[-1] for row in rows if row.startswith(("circle", "square", "mean"))}
        assert last == {"circle": "91.50", "square": "-", "mean": "-"}
        assert "the paper's mean HD95 is 1.25." in one
    assert collected["paper"] == {"source": "Table 9", "dice": SOME.dice, "mean": SOME.mean}


def test_runs_on_different_data_have_no_mean() -> None:
    results = [{"settings": {"fold": fold}, "data": {"fingerprint": data}} for fold, data in ((1, "a"), (1, "b"))]
    with pytest.raises(RunError, match="were trained and tested on different data, so they have no mean"):
        collect(SCANS, results)
