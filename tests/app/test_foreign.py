"""What one owner has done shows in no number of another's, and can be named in no request of another's."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import update

from app.tables.uploads import READY, Upload
from tests.app.numbers import arm, record
from tests.app.people import People, people, stored, submitted

SPEC = {
    "dataset": {"name": "digits"},
    "model": {"name": "small_cnn"},
    "attack": {"name": "badnets"},
    "defenses": [{"name": "abl"}],
    "training": {"epochs": 2},
    "reference": True,
}
NUMBERS = {
    ("clean", 0): arm(0.98, None),
    ("undefended", 0): arm(0.97, 1.0),
    ("abl", 0): arm(0.96, 0.01),
}
STUDY = {
    "dataset": {"name": "digits"},
    "model": {"name": "small_cnn"},
    "training": {"epochs": 2},
    "attacks": [{"attack": {"name": "badnets"}}],
    "defenses": [{"name": "abl"}],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def ann(made: People) -> httpx2.Client:
    return made.of("ann")


@pytest.fixture(scope="module")
def bob(made: People) -> httpx2.Client:
    return made.of("bob")


@pytest.fixture(scope="module")
def ended(made: People, ann: httpx2.Client) -> str:
    """An experiment of Ann's with numbers and a file."""
    experiment = submitted(ann, **SPEC)
    record(made.service, experiment, NUMBERS)
    stored(made.service, experiment, b"x" * 100)
    made.service.end(experiment)
    return experiment


@pytest.mark.parametrize(
    "path",
    [
        "/v1/experiments",
        "/v1/results",
        "/v1/leaderboard?dataset=digits&model=small_cnn",
        "/v1/leaderboard/pareto?dataset=digits&model=small_cnn",
        "/v1/me",
        "/",
        "/leaderboard",
    ],
)
def test_numbers_are_the_owners_alone(
    made: People, ann: httpx2.Client, bob: httpx2.Client, ended: str, path: str
) -> None:
    mine, theirs, newcomer = ann.get(path), bob.get(path), made.of("newcomer").get(path)
    assert [mine.status_code, theirs.status_code] == [200, 200], (mine.text, theirs.text)
    assert without_names(mine) != without_names(theirs)
    assert without_names(theirs) == without_names(newcomer)


def without_names(answer: httpx2.Response) -> Any:
    """The answer without who asked."""
    if "json" not in answer.headers["content-type"]:
        return answer.text
    return {name: value for name, value in answer.json().items() if name not in ("owner", "key")}


def test_a_cached_answer_of_a_poll_is_the_owners_alone(
    ann: httpx2.Client, bob: httpx2.Client, ended: str
) -> None:
    path = f"/v1/experiments/{ended}"
    tag = ann.get(path).headers["ETag"]
    assert ann.get(path, headers={"If-None-Match": tag}).status_code == 304
    assert bob.get(path).status_code == 404
    assert bob.get(path, headers={"If-None-Match": tag}).status_code == 404


def test_comparing_with_a_foreign_experiment_is_like_comparing_with_none(
    ann: httpx2.Client, bob: httpx2.Client, ended: str
) -> None:
    other, own = submitted(ann, **SPEC), submitted(bob, **SPEC)
    assert ann.get("/v1/compare", params={"ids": f"{ended},{other}"}).status_code == 200
    assert bob.get("/v1/compare", params={"ids": f"{own},{ended}"}).status_code == 404


def test_a_study_is_not_filled_with_foreign_numbers(
    ann: httpx2.Client, bob: httpx2.Client, ended: str
) -> None:
    answers = [client.post("/v1/studies", json=STUDY).raise_for_status().json() for client in (ann, bob)]
    mine, theirs = (
        client.get(f"/v1/studies/{a['id']}/table").text for client, a in zip((ann, bob), answers, strict=True)
    )
    assert "0.96" in mine
    assert "0.96" not in theirs


def test_a_foreign_upload_cannot_be_named(made: People, ann: httpx2.Client, bob: httpx2.Client) -> None:
    def sent(kind: str, metadata: dict[str, Any]) -> str:
        form = {"metadata": (None, json.dumps(metadata)), "file": ("file", b"checked by no worker")}
        return str(ann.post(f"/v1/{kind}", files=form).raise_for_status().json()["id"])

    model = sent("models", {"model": {"name": "small_cnn"}, "dataset": {"name": "digits"}})
    with made.service.database.writing() as session:
        session.execute(update(Upload).values(status=READY))
    spec = {**SPEC, "victim": {"model_id": model}}
    refused = bob.post("/v1/experiments", json=spec)
    nobodys = "0" * 8 + "-0000-7000-8000-" + "0" * 12
    nothing = bob.post("/v1/experiments", json={**SPEC, "victim": {"model_id": nobodys}})
    assert (refused.status_code, nothing.status_code) == (422, 422)
    said = [json.dumps(answer.json()["errors"]) for answer in (refused, nothing)]
    assert said[0].replace(model, "ID") == said[1].replace(nobodys, "ID")
    data = sent("datasets", {"format": "npz"})
    named = {"dataset": {"name": "uploaded", "dataset_id": data}}
    assert bob.post("/v1/experiments:validate", json=named).status_code == 422


def test_an_answer_kept_for_its_owner_is_not_given_to_another(
    ann: httpx2.Client, bob: httpx2.Client, ended: str
) -> None:
    path = f"/v1/experiments/{ended}"
    first = ann.get(path)
    again = ann.get(path)
    assert (first.status_code, again.content) == (200, first.content)
    assert bob.get(path).status_code == 404
    assert bob.get(path, headers={"If-None-Match": first.headers["ETag"]}).status_code == 404
