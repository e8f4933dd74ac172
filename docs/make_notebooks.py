"""Run the notebooks of docs/notebooks and store what they print and draw: ``python docs/make_notebooks.py``."""

import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).with_name("notebooks")


def clean(notebook: Any) -> None:
    """Keep what a reader sees: no times of execution, no warnings of the machine that ran it."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def main() -> None:
    """Run every notebook in a folder that is thrown away, and write it back."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, resources={"metadata": {"path": folder}}).execute()
        clean(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
