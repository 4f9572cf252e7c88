"""`import bdlab`: frames, arrays, models and progress, on a real run."""

import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from rich.console import Console

from app.specs.dataset import Digits
from app.specs.experiment import ExperimentSpec
from bdlab import (
    BackdooredModelWarning,
    Client,
    MissingPackageError,
    NotFoundError,
    UnsuitableFileError,
    WaitTimeoutError,
)
from bdlab.progress import Bars, Lines, display
from tests.conftest import Stack
from tests.lab.memory import DIGITS_ONLY
from tests.quick import QUICK
from tests.test_docs import blocks
from worker.lab.data.datasets import load_dataset


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.url) as made:
        yield made


@pytest.fixture(scope="module")
def ids(client: Client) -> list[str]:
    """Two runs; the first is that of other tests too, so mostly cached, the second lacks its defense."""
    specs: list[dict[str, Any]] = [{**QUICK, "tags": {"study": "bdlab"}}]
    specs.append({**specs[0], "defenses": []})
    made = [client.submit(spec)["id"] for spec in specs]
    for id in made:
        assert client.wait(id, timeout=120)["status"] == "succeeded"
    return made


def test_results_as_frames(client: Client, ids: list[str]) -> None:
    pandas, polars = client.results_frame(ids[0]), client.results_frame(ids[0], "polars")
    assert isinstance(pandas, pd.DataFrame)
    assert isinstance(polars, pl.DataFrame)
    assert list(pandas.columns) == polars.columns
    assert list(zip(pandas["arm"], pandas["seed"], strict=True)) == [
        (arm, seed) for arm in ("undefended", "abl") for seed in (0, 1)
    ]
    told = client.results(ids[0])["arms"][1]["aggregate"]["clean_accuracy"]
    assert told is not None
    means = pandas.groupby("arm")["clean_accuracy"].mean()
    assert means["abl"] == pytest.approx(told["mean"])
    assert polars["clean_accuracy"].dtype == pl.Float64
    assert polars["clean_accuracy"].to_list() == pandas["clean_accuracy"].tolist()


def test_curves_search_leaderboard_and_comparison_as_frames(client: Client, ids: list[str]) -> None:
    curves = client.metrics_frame(ids[0], arm="undefended", seed=0, name="train_loss")
    assert curves["step"].tolist() == [1, 2]
    assert curves["value"].notna().all()
    found = client.search_frame("tag.study=bdlab", fields="experiment_id,arm,results.clean_accuracy")
    assert sorted(found["experiment_id"].unique()) == sorted(ids)
    assert len(found) == 3
    assert client.search_frame("tag.study=nothing", library="polars").is_empty()
    board = client.leaderboard_frame("digits", "small_cnn", library="polars")
    assert "badnets" in board["attack"]
    published = client.leaderboard_frame("cifar10", "resnet18")["published_by"]
    assert "abl_paper" in set(published.dropna())
    compared = client.compare_frame(ids, "polars")
    second = compared.filter(pl.col("experiment_id") == ids[1], metric="clean_accuracy", arm="undefended")
    assert second["difference.mean"].to_list() == [0.0]  # its victim is the cached one
    assert second["difference.n"].to_list() == [2]


def test_files_as_arrays(client: Client, ids: list[str]) -> None:
    weights = client.arrays(client.artifact(ids[0], "seed-0/abl/model.safetensors"))
    assert weights["head.weight"].shape[0] == 10
    assert weights["head.weight"].dtype == np.float32
    ranking = client.artifact(ids[0], "seed-0/abl/isolation.csv")
    columns = client.arrays(ranking)
    assert all(len(column) == 200 for column in columns.values())
    frame = client.artifact_frame(ranking)
    assert list(frame.columns) == list(columns)
    assert client.artifact_frame(ranking, "polars").height == len(frame) == 200
    figure = client.artifacts(ids[0], kind="figure")[0]
    picture = client.image(figure)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    with pytest.raises(UnsuitableFileError, match=r"\.npz, \.safetensors, \.csv and \.parquet are"):
        client.arrays(figure)
    with pytest.raises(UnsuitableFileError, match="pictures are"):
        client.image(ranking)
    with pytest.raises(UnsuitableFileError, match=r"\.csv and \.parquet are"):
        client.artifact_frame(figure)
    with pytest.raises(
        NotFoundError, match=r"no file 'seed-0/nad/model\.safetensors'; its files: .*seed-0/abl"
    ):
        client.artifact(ids[0], "seed-0/nad/model.safetensors")


def test_a_loaded_model_answers_as_the_service_does(client: Client, ids: list[str]) -> None:
    with pytest.warns(BackdooredModelWarning, match="'abl'.*poisoned data"):
        network = client.model(ids[0], "abl", seed=1)
    assert not network.training
    images = load_dataset(Digits(), DIGITS_ONLY, seed=1).test.images  # uint8 [360, 1, 8, 8]
    with torch.inference_mode():
        chances = network(images / 255).softmax(1)
    seen = client.predict(ids[0], index=3, seed=1)
    told = torch.tensor(next(arm["probabilities"] for arm in seen["arms"] if arm["arm"] == "abl"))
    assert ((chances - told).abs().amax(1) < 0.02).any()  # one of the digits is test image 3
    with pytest.raises(NotFoundError, match="no file 'seed-7/abl/model"):
        client.model(ids[0], "abl", seed=7)


def test_a_model_of_clean_data_comes_without_a_warning(client: Client) -> None:
    spec = {**QUICK, "attack": {"name": "none"}, "defenses": [], "reference": True, "seeds": [0]}
    id = client.submit(spec)["id"]
    client.wait(id, timeout=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert client.model(id, "clean").head.out_features == 10


def test_the_python_examples_run(
    client: Client, ids: list[str], stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit_quick(self: Client, spec: Any) -> Any:
        ExperimentSpec.model_validate(spec)
        return submit(self, QUICK)  # seconds, not a minute

    client.wait(client.submit({**QUICK, "defenses": []})["id"], timeout=60)
    submit = Client.submit
    monkeypatch.setattr(Client, "submit", submit_quick)
    examples = [text for name, text in blocks("python") if name in ("client.md", "results-query.md")]
    assert len(examples) == 4
    for text in examples:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BackdooredModelWarning)
            exec(text.replace("http://127.0.0.1:8000", stack.url), {})


def test_what_is_missing_is_named(client: Client, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "worker.lab.networks.loading", None)
    with pytest.raises(MissingPackageError, match=r'pip install "backdoor-lab\[frames\]"'):
        client.results_frame(ids[0])
    with pytest.raises(MissingPackageError, match='pip install "polars"'):
        client.search_frame("tag.study=bdlab", library="polars")
    with pytest.raises(MissingPackageError, match=r'pip install "backdoor-lab\[worker\]"'):
        client.model(ids[0], "abl")
    with pytest.raises(ValueError, match="'arrow' is not allowed"):
        client.results_frame(ids[0], "arrow")  # type: ignore[call-overload]


def test_waiting_shows_lines_where_bars_cannot_move(
    client: Client, ids: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    client.wait(ids[0])
    assert capsys.readouterr().err == ""
    client.wait(ids[0], progress=True)
    assert "succeeded" in capsys.readouterr().err
    long = client.submit({**QUICK, "training": {"epochs": 1000}, "seeds": [98]})["id"]
    with pytest.raises(WaitTimeoutError):
        client.wait(long, timeout=2, progress=True)
    client.cancel(long)
    client.wait(long, timeout=30, progress=True)
    assert "canceled" in capsys.readouterr().err


def test_bars_on_a_terminal_and_in_a_notebook_that_can_move_them() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, highlight=False, width=120)
    with display(terminal) as shown:
        assert isinstance(shown, Bars)
        shown.show("state", {"status": "running"})
        place = {"seed": 0, "arm": "abl", "stage": "victim", "epoch": 3, "epochs": 4}
        shown.show("progress", {**place, "fraction": 0.5, "seconds_left": 7.2})
        shown.show("warning", {"arm": "abl", "message": "look [here]"})
    drawn = terminal.file.getvalue()  # type: ignore[attr-defined]
    for text in ("running", " 50 %", "7 s left", "epoch 3 of 4", "seed 0, abl, victim", "look [here]"):
        assert text in drawn
    notebook = Console(file=io.StringIO(), force_jupyter=True)
    with display(notebook) as shown:
        assert isinstance(shown, Lines)  # ipywidgets is not installed here
