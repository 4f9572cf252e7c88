"""The notebook of the examples runs against the service, and is stored with small outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import Stack

PATH = Path(__file__).parent.parent / "examples/notebooks/first-steps.ipynb"
MOST_BYTES = 200_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Jupyter's packages
def test_the_notebook_runs_from_top_to_bottom(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDLAB_URL", stack.url)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(PATH.parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=280).execute()  # raises CellExecutionError
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs}
    texts = [str(output.get("data", {})) for parts in outputs.values() for output in parts]
    for expected in ("'succeeded'", "attack_success_rate", "image/png", "torch.Size([2, 10])"):
        assert any(expected in text for text in texts), expected


def test_the_stored_notebook_has_small_outputs_and_no_errors() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"execute_result", "display_data"}
    assert PATH.stat().st_size < MOST_BYTES
