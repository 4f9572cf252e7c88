"""Reading, listing, canceling, retrying, deleting."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import pagination
from app.core.database import utcnow
from app.core.errors import BadRequestError
from app.core.security import Signer
from app.experiments import lifecycle
from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment
from app.tables.results import ArmNote, ResultValue
from tests.app.conftest import Service


def names(answer: Any) -> list[str]:
    return [e["name"] for e in answer.json()["experiments"]]


def test_an_unknown_id_is_a_404_everywhere(service: Service) -> None:
    here = "/v1/experiments/01900000-0000-7000-8000-000000000000"
    gets = ["", "/results", "/metrics", "/logs", "/artifacts", "/events", "/events?after=0"]
    answers = [service.http.get(here + path) for path in gets]
    answers += [service.http.post(here + path) for path in (":cancel", ":retry")]
    answers += [service.http.post(f"{here}/predict", json={}), service.http.delete(here)]
    answers += [service.http.get("/v1/artifacts/nothing/content")]
    assert [a.status_code for a in answers] == [404] * len(answers)
    assert all(a.headers["content-type"] == "application/problem+json" for a in answers)


def test_unknown_paths_and_methods_are_problems(service: Service) -> None:
    unknown = service.http.get("/v2/experiments")
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "there is no /v2/experiments")
    wrong = service.http.put("/v1/experiments")
    assert wrong.status_code == 405
    assert wrong.headers["Allow"] == "GET, POST"


def test_a_clients_request_id_comes_back(service: Service) -> None:
    given = service.http.get("/v1/experiments/x", headers={"X-Request-ID": "abc-1"})
    assert given.headers["X-Request-ID"] == given.json()["request_id"] == "abc-1"
    odd = service.http.get("/healthz", headers={"X-Request-ID": 'a"b'})
    assert len(odd.headers["X-Request-ID"]) == 32


def test_polling_with_an_etag(service: Service) -> None:
    experiment = service.submit()
    link = experiment["links"]["self"]
    first = service.http.get(link)
    same = service.http.get(link, headers={"If-None-Match": first.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    service.start(experiment["id"])
    changed = service.http.get(link, headers={"If-None-Match": first.headers["ETag"]})
    assert (changed.status_code, changed.json()["status"]) == (200, "running")
    assert changed.json()["started_at"]
    assert [a["number"] for a in changed.json()["attempts"]] == [1]


def test_the_summary_is_the_mean_over_seeds(service: Service) -> None:
    experiment = service.submit({"seeds": [0, 1], "reference": True})
    service.start(experiment["id"])
    service.add(
        *(
            ResultValue(experiment_id=experiment["id"], arm=arm, seed=seed, metric=metric, value=value)
            for arm, seed, metric, value in [
                ("undefended", 0, "clean_accuracy", 0.5),
                ("undefended", 1, "clean_accuracy", 0.7),
                ("undefended", 0, "attack_success_rate", 1.0),
                ("clean", 0, "clean_accuracy", 0.9),
                ("clean", 0, "attack_success_rate", None),
            ]
        )
    )
    clean, undefended = service.get(experiment["id"])["summary"]
    assert clean == {"arm": "clean", "clean_accuracy": 0.9, "attack_success_rate": None}
    assert undefended == {
        "arm": "undefended",
        "clean_accuracy": pytest.approx(0.6),
        "attack_success_rate": 1.0,
    }


def test_pages_stay_put_while_experiments_are_added(service: Service) -> None:
    tag = {"tags": {"set": "pages"}}
    made = [service.submit({"name": f"p{i}", **tag})["name"] for i in range(7)]
    page = service.http.get("/v1/experiments", params={"tag": "set:pages", "limit": 3})
    seen = names(page)
    extra = 0
    while page.json()["next"]:
        service.submit({"name": f"late{extra}", **tag})
        extra += 1
        assert page.headers["Link"] == f'<{page.json()["next"]}>; rel="next"'
        page = service.http.get(page.json()["next"])
        seen += names(page)
    assert seen == made[::-1]
    forward = service.http.get("/v1/experiments", params={"tag": "set:pages", "order": "created_at"})
    assert names(forward) == made + [f"late{i}" for i in range(extra)]
    assert "Link" not in forward.headers


def test_experiments_of_the_same_instant_are_neither_lost_nor_repeated(service: Service) -> None:
    ids = [service.submit({"tags": {"set": "instant"}})["id"] for _ in range(5)]
    now = utcnow()
    with service.database.writing() as session:
        for i in ids:
            session.get_one(Experiment, i).created_at = now
    link: str | None = "/v1/experiments?tag=set:instant&limit=2"
    seen = []
    while link:
        page = service.http.get(link).json()
        seen += [e["id"] for e in page["experiments"]]
        link = page["next"]
    assert seen == sorted(ids, reverse=True)


@pytest.mark.parametrize("text", ["GRÖSSE", "größe", "Grösse 50%", "é"])
def test_part_of_the_name_in_any_case(service: Service, text: str) -> None:
    service.submit({"name": "Die Größe 50% É", "tags": {"set": "cases"}})
    answer = service.http.get("/v1/experiments", params={"tag": "set:cases", "text": text})
    assert set(names(answer)) == {"Die Größe 50% É"}
    other = service.http.get("/v1/experiments", params={"tag": "set:cases", "text": "groesse"})
    assert names(other) == []


def test_filters(service: Service) -> None:
    tag = {"set": "filters"}
    service.submit({"name": "a", "attack": {"name": "sig"}, "tags": tag})
    service.submit({"name": "b", "defenses": [{"name": "abl"}], "tags": {**tag, "more": "x:y"}})
    service.submit({"name": "c", "model": {"name": "resnet18"}, "dataset": {"name": "gtsrb"}, "tags": tag})

    def found(**parameters: Any) -> list[str]:
        tags = ["set:filters", *parameters.pop("tags", [])]
        answer = service.http.get(
            "/v1/experiments", params={"tag": tags, "order": "created_at", **parameters}
        )
        return names(answer)

    assert found() == ["a", "b", "c"]
    assert found(attack="sig") == ["a"]
    assert found(defense="abl") == ["b"]
    assert found(model="resnet18") == found(dataset="gtsrb") == ["c"]
    assert found(tags=["more:x:y"]) == ["b"]
    assert found(tags=["more:x"]) == found(status="running") == []
    assert found(tags=["more"]) == ["b"]
    assert found(tags=["-more"]) == ["a", "c"]
    assert found(tags=["-more:x:y"]) == ["a", "c"]
    assert found(tags=["-more:z", "more"]) == ["b"]
    assert found(tags=["-set"]) == []
    wrong = service.http.get("/v1/experiments", params={"tag": ":nonsense"})
    assert "key:value" in wrong.json()["errors"][0]["message"]
    assert service.http.get("/v1/experiments?status=done").status_code == 422
    assert service.http.get("/v1/experiments?limit=201").status_code == 422


def test_a_cursor_is_good_only_for_its_own_query(service: Service) -> None:
    for _ in range(2):
        service.submit()
    link = service.http.get("/v1/experiments?limit=1").json()["next"]
    for bad in (link + "&attack=sig", link + "&order=created_at", "/v1/experiments?cursor=x", link[:-2]):
        answer = service.http.get(bad)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("cursor:")


SIGNER = Signer(b"secret")


@given(position=st.lists(st.text(), max_size=3), query=st.lists(st.text(), max_size=3))
def test_a_cursor_gives_back_its_position(position: list[str], query: list[str]) -> None:
    cursor = pagination.encode(SIGNER, query, position)
    assert cursor.isascii()
    assert pagination.decode(SIGNER, query, cursor) == position
    for signer, other in ((Signer(b"other"), query), (SIGNER, [*query, "more"])):
        with pytest.raises(BadRequestError):
            pagination.decode(signer, other, cursor)


@given(st.text())
def test_no_text_is_a_cursor_by_accident(cursor: str) -> None:
    with pytest.raises(BadRequestError):
        pagination.decode(SIGNER, [], cursor)


def test_canceling_what_is_queued_ends_it_at_once(service: Service) -> None:
    experiment = service.submit()
    answer = service.http.post(experiment["links"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (202, "canceled")
    assert answer.json()["finished_at"]
    assert service.http.post(experiment["links"]["cancel"]).status_code == 202
    with service.database.writing() as session:
        assert lifecycle.claim(session, experiment["id"], "late", 10) is None


def test_canceling_what_runs_asks_the_worker(service: Service) -> None:
    experiment = service.submit()
    attempt = service.start(experiment["id"])
    answer = service.http.post(experiment["links"]["cancel"]).json()
    assert answer["status"] == "running"
    assert answer["cancel_requested_at"]
    with service.database.writing() as session:
        assert lifecycle.renew(session, experiment["id"], attempt, 10)
        lifecycle.finish(session, experiment["id"], attempt, "canceled")
    assert service.get(experiment["id"])["status"] == "canceled"


def test_what_has_ended_cannot_be_canceled(service: Service) -> None:
    experiment = service.submit()
    service.end(experiment["id"])
    answer = service.http.post(experiment["links"]["cancel"])
    assert (answer.status_code, "succeeded" in answer.json()["detail"]) == (409, True)


def test_half_a_surrogate_pair_does_not_hide_an_experiment(service: Service) -> None:
    experiment, error = service.submit(), {"reason": "no file caf\udce9", "attempt": 1}
    with service.database.writing() as session:
        session.get_one(Experiment, experiment["id"]).error = error
    with service.database.writing() as session:
        row = session.get_one(Experiment, experiment["id"])
        assert row.error == error
        row.error = None  # it cannot be sent as JSON


def test_only_what_has_ended_can_be_retried(service: Service) -> None:
    experiment = service.submit()
    assert service.http.post(experiment["links"]["retry"]).status_code == 409
    service.end(experiment["id"], "failed", "the loss is not finite")
    failed = service.get(experiment["id"])
    assert failed["error"] == {"reason": "the loss is not finite", "attempt": 1}
    note = ArmNote(experiment_id=experiment["id"], arm="undefended", seed=0, kind="error", message="bad")
    service.add(note)
    again = service.http.post(experiment["links"]["retry"]).json()
    assert (again["status"], again["error"], again["finished_at"]) == ("queued", None, None)
    assert [a["outcome"] for a in again["attempts"]] == ["failed"]
    assert service.http.get(experiment["links"]["results"]).json()["arms"] == []
    service.end(experiment["id"])
    assert [a["outcome"] for a in service.get(experiment["id"])["attempts"]] == ["failed", "succeeded"]


def test_deleting_takes_the_files_that_nobody_shares(service: Service) -> None:
    doomed, kept = service.submit(), service.submit()

    def attach(experiment: dict[str, Any], name: str, data: bytes) -> str:
        digest, key = service.store(data)
        service.add(
            Artifact(
                experiment_id=experiment["id"],
                name=name,
                kind="data",
                media_type="text/plain",
                size=len(data),
                sha256=digest,
                object_key=key,
                details={},
                created_at=utcnow(),
            )
        )
        return key

    shared = attach(kept, "a", b"shared")
    assert attach(doomed, "b", b"shared") == shared
    alone = attach(doomed, "c", b"alone")
    attempt = service.start(doomed["id"])
    refused = service.http.delete(doomed["links"]["self"])
    assert refused.status_code == 409
    assert f"{doomed['id']}:cancel" in refused.json()["detail"]
    with service.database.writing() as session:
        lifecycle.finish(session, doomed["id"], attempt, "succeeded")
    assert service.http.delete(doomed["links"]["self"]).status_code == 204
    assert service.http.get(doomed["links"]["self"]).status_code == 404
    assert service.objects.exists(shared)
    assert not service.objects.exists(alone)
    assert service.http.delete(service.submit()["links"]["self"]).status_code == 204  # a queued one


def test_times_tell_when_each_state_began(service: Service) -> None:
    experiment = service.submit()
    service.end(experiment["id"])
    found = service.get(experiment["id"])
    times = [found[k] for k in ("created_at", "queued_at", "started_at", "finished_at")]
    assert times == sorted(times)
    assert all(t.endswith("Z") for t in times)
    assert found["progress"]["fraction"] == 1
