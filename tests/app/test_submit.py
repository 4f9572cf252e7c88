"""Submitting: what is accepted, what is refused, and that nothing is written of what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from app.core.database import utcnow
from app.specs.experiment import ExperimentSpec
from app.tables.experiments import Experiment, Outbox, Stage
from tests.app.conftest import QUICK, Service, document


def count(service: Service, table: type[Any] = Experiment) -> int:
    with service.database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_the_answer_is_the_experiment_and_says_where_it_is(service: Service) -> None:
    answer = service.http.post("/v1/experiments", json=QUICK)
    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/experiments/{body['id']}" == body["links"]["self"]
    assert body["status"] == "queued"
    assert body["spec"] == ExperimentSpec.model_validate(QUICK).model_dump(mode="json")
    assert body["spec_hash"] == ExperimentSpec.model_validate(QUICK).spec_hash
    assert body["progress"]["fraction"] == 0
    assert body["attempts"] == body["summary"] == []
    assert service.get(body["id"]) == body


def test_the_message_is_written_with_the_experiment(service: Service) -> None:
    before = count(service, Outbox)
    service.submit()
    assert count(service, Outbox) == before + 1


WIDE_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAkAAAACCAAAAACvPakPAAAAC0lEQVR42mNgwAQAABQAAe5aaQkAAAAASUVORK5CYII="
"""9 x 2 gray pixels, which do not fit on a digit."""
BAD = [
    (
        {"attack": {"name": "badnets", "pattern": "png", "pattern_png": WIDE_PNG}},
        "attack.pattern_png",
        "9x2 pixels in gray",
        "at most 8x8 pixels in gray",
    ),
    ({"attack": {"name": "zap"}}, "attack.name", "zap", "'badnets'"),
    ({"attack": {"name": "badnets", "poisoning_rate": 1.5}}, "attack.poisoning_rate", 1.5, "1"),
    ({"attack": {"name": "badnets", "target_class": 12}}, "attack.target_class", 12, "0 to 9"),
    ({"attack": {"name": "blend", "alhpa": 0.1}}, "attack.alhpa", 0.1, "alpha"),
    ({"attak": {}}, "attak", {}, "attack"),
    ({"attack": {}}, "attack.name", None, "required"),
    (
        {"attack": {"name": "sig", "rate_of": "training_set", "poisoning_rate": 0.5}},
        "attack.poisoning_rate",
        0.5,
        "142 images",
    ),
    ({"defenses": [{"name": "abl"}, {"name": "abl", "arm": "b", "gamma": -1}]}, "defenses[1].gamma", -1, "0"),
    ({"defenses": [{"name": "abl"}, {"name": "abl"}]}, "body", None, "arm names"),
    ({"dataset": {"name": "imported"}}, "dataset.key", None, "required"),
    ({"dataset": {"name": "imported", "key": "mine"}}, "dataset.key", "mine", "bdlab data import"),
    ({"dataset": {"name": "digits", "train_size": 5000}}, "dataset.train_size", 5000, "1437"),
    ({"seeds": []}, "seeds", [], "1"),
    ({"seeds": [1, 1]}, "body", None, "[1, 1]"),
    ({"name": "a\0b"}, "name", "a\0b", "U+0000"),
    ({"name": "x" * 300}, "name", None, "200"),
]


@pytest.mark.parametrize(("spec", "field", "value", "allowed"), BAD, ids=[b[1] for b in BAD])
def test_a_wrong_spec_is_refused_by_field_value_and_what_is_allowed(
    service: Service, spec: dict[str, Any], field: str, value: Any, allowed: str
) -> None:
    before = count(service)
    answer = service.http.post("/v1/experiments", json=spec)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    error = problem["errors"][0]
    assert error["field"] == field
    assert allowed in error["message"]
    if value is not None:
        assert error["value"] == value
    assert count(service) == before


UNREADABLE = {
    "broken": ("{", 400),
    "deep list": ("[" * 5000, 400),
    "deep object": ('{"a":' * 2000 + "1" + "}" * 2000, 400),
    "deep enough to parse": ('{"tags":' + '{"a":' * 300 + "1" + "}" * 301, 422),
    "endless number": ('{"seeds":[1' + "0" * 6000 + "]}", 400),
    "huge number": ('{"seeds":[1' + "0" * 3000 + "]}", 422),
    "not a number": ('{"training":{"learning_rate":NaN}}', 422),
    "half a character": ('{"name":"\\ud800"}', 422),
    "half a character as a field": ('{"\\ud800":1}', 422),
    "a list": ("[]", 422),
    "nothing": ("", 422),
    "no text": (b"\xff\xfe{}", 400),
}


@pytest.mark.parametrize(("body", "status"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_body_is_the_clients_fault(service: Service, body: str | bytes, status: int) -> None:
    before = count(service)
    answer = service.http.post("/v1/experiments", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert count(service) == before


def test_a_body_of_another_type_is_refused(service: Service) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}):
        answer = service.http.post("/v1/experiments", content="{}", headers=headers)
        assert answer.status_code == 415
        assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize("streamed", [False, True], ids=["with its length", "streamed"])
def test_a_large_body_is_refused(service: Service, streamed: bool) -> None:
    body = json.dumps({"name": "x" * 30_000}).encode()
    content = (body[i : i + 1000] for i in range(0, len(body), 1000)) if streamed else body
    answer = service.http.post(
        "/v1/experiments", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert "20000 bytes" in answer.json()["detail"]
    assert service.http.get("/healthz").status_code == 200


def test_a_data_set_that_is_not_there_names_the_command(service: Service) -> None:
    folder = service.settings.datasets
    spec = {"dataset": {"name": "cifar10"}}
    assert (
        service.http.post("/v1/experiments:validate", json=spec).status_code == 200
    )  # workers keep the data
    folder.mkdir()
    try:
        answer = service.http.post("/v1/experiments:validate", json=spec)
        assert answer.status_code == 422
        assert "bdlab data fetch cifar10" in answer.json()["errors"][0]["message"]
    finally:
        folder.rmdir()


def test_the_same_key_gives_the_first_answer_again(service: Service) -> None:
    before = count(service)
    first = service.http.post("/v1/experiments", json=QUICK, headers={"Idempotency-Key": "one"})
    service.http.post(f"/v1/experiments/{first.json()['id']}:cancel")
    again = service.http.post("/v1/experiments", json=QUICK, headers={"Idempotency-Key": "one"})
    assert again.status_code == first.status_code == 202
    assert again.json() == first.json()
    assert again.headers["Location"] == first.headers["Location"]
    other = service.http.post("/v1/experiments", json={"name": "other"}, headers={"Idempotency-Key": "one"})
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["detail"]
    assert count(service) == before + 1


def test_eight_posts_at_once_with_one_key_make_one_experiment(service: Service) -> None:
    before = count(service)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: service.http.post(
                    "/v1/experiments", json=QUICK, headers={"Idempotency-Key": "race"}
                ),
                range(8),
            )
        )
    assert {a.status_code for a in answers} == {202}
    assert len({a.text for a in answers}) == 1
    assert len([a for a in answers if "Idempotency-Replayed" not in a.headers]) == 1
    assert count(service) == before + 1


def test_a_dry_run_writes_nothing_and_knows_what_is_cached(service: Service) -> None:
    before = count(service)
    spec = {"defenses": [{"name": "abl"}], "reference": True, "seeds": [3, 4]}
    found = service.http.post("/v1/experiments:validate", json=spec).json()
    assert found["arms"] == ["clean", "undefended", "abl"]
    assert found["spec_hash"] == ExperimentSpec.model_validate(spec).spec_hash
    assert found["cached"] == 0
    assert {s["seed"] for s in found["stages"]} == {3, 4}
    first, second = found["stages"][:2]
    service.add(
        Stage(key=first["key"], kind=first["kind"], ready_at=utcnow(), last_used_at=utcnow()),
        Stage(key=second["key"], kind=second["kind"], ready_at=None, last_used_at=utcnow()),
    )
    again = service.http.post("/v1/experiments:validate", json=spec).json()
    assert [s["key"] for s in again["stages"] if s["cached"]] == [first["key"]]
    assert again["cached"] == 1
    assert count(service) == before


def test_every_example_of_the_openapi_document_can_be_submitted(service: Service) -> None:
    body = document()["paths"]["/v1/experiments"]["post"]["requestBody"]["content"]["application/json"]
    examples = {name: example["value"] for name, example in body["examples"].items()}
    assert examples["torchvision"]["model"]["name"] == "torchvision"
    for name, spec in examples.items():
        answer = service.http.post("/v1/experiments:validate", json=spec)
        assert answer.status_code == 200, (name, answer.text)
