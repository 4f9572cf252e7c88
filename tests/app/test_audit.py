"""The audit log: what is in it, and that nothing gets out of it again."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DatabaseError

from app.core.database import Database, utcnow
from app.operations.housekeeping import audit
from app.tables.audit import AuditEntry
from app.team.audit.middleware import of_command
from tests.app.people import People, people, stored, submitted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("home")) as running:
        yield running


def entries(made: People, owner: str) -> list[dict[str, Any]]:
    """What the log says of an owner, the oldest first."""
    answer = made.of("root").get("/v1/audit", params={"owner": owner, "limit": 200})
    return list(reversed(answer.json()["entries"]))


def test_every_change_is_there_when_its_answer_is(made: People) -> None:
    key = made.key("ann")
    ann = made.client(key)
    answer = ann.post("/v1/experiments", json={}, headers={"X-Request-ID": "first"})
    (entry,) = entries(made, "ann")
    assert entry | {"id": 0, "at": ""} == {
        "id": 0,
        "at": "",
        "request_id": "first",
        "owner": "ann",
        "key": key.split("_")[1],
        "client": "127.0.0.1",
        "method": "POST",
        "route": "/v1/experiments",
        "path": "/v1/experiments",
        "status": 202,
        "location": f"/v1/experiments/{answer.json()['id']}",
    }
    experiment = answer.json()["id"]
    ann.post(f"/v1/experiments/{experiment}:cancel")
    ann.delete(f"/v1/experiments/{experiment}")
    last = entries(made, "ann")[-1]
    assert (last["method"], last["route"], last["path"], last["status"]) == (
        "DELETE",
        "/v1/experiments/{experiment_id}",
        f"/v1/experiments/{experiment}",
        204,
    )
    assert last["location"] is None


def test_a_forwarded_address_is_believed_only_from_a_configured_proxy(made: People, tmp_path: Path) -> None:
    claim = {"X-Forwarded-For": "198.51.100.9, 203.0.113.7, 10.1.2.3"}
    made.of("mallory").post("/v1/experiments", json={}, headers=claim)
    assert entries(made, "mallory")[-1]["client"] == "127.0.0.1"
    with people(tmp_path, proxies="127.0.0.1, 10.0.0.0/8") as behind:
        behind.of("mallory").post("/v1/experiments", json={}, headers=claim)
        assert (
            entries(behind, "mallory")[-1]["client"] == "203.0.113.7"
        )  # the last that no proxy of ours wrote


def test_it_tells_which_key_was_made_by_whom(made: People) -> None:
    key = made.key("boss", "admin")
    new = made.client(key).post("/v1/keys", json={"owner": "ann", "label": "Ann, laptop"}).json()
    (entry,) = entries(made, "boss")
    assert (entry["key"], entry["location"]) == (key.split("_")[1], f"/v1/keys/{new['prefix']}")
    shown = made.of("root").get(entry["location"]).json()
    assert (shown["owner"], shown["label"]) == ("ann", "Ann, laptop")


def test_refusals_are_there_and_mere_looking_is_not(made: People) -> None:
    bob, reader = made.of("bob"), made.of("bob", "read")
    bob.get("/v1/experiments")
    bob.get("/v1/nowhere")
    bob.post("/v1/experiments:validate", json={})
    made.service.http.post("/v1/experiments", json={})  # nobody's
    assert entries(made, "bob") == []
    bob.post("/v1/experiments", json={"atack": {}})
    bob.post("/v1/experiments/none:cancel")
    reader.post("/v1/experiments", json={})
    assert [entry["status"] for entry in entries(made, "bob")] == [422, 404, 403]


def test_downloads_of_backdoors_are_there(made: People) -> None:
    eve, careful = made.of("eve"), made.of("eve", "read")
    experiment = submitted(eve)
    good = stored(made.service, experiment, b"good")
    bad = stored(made.service, experiment, b"bad", backdoored=True)
    for artifact in (good, bad):
        eve.get(f"/v1/artifacts/{artifact}/content")
        careful.get(f"/v1/artifacts/{artifact}/content")
    found = [(entry["path"], entry["status"]) for entry in entries(made, "eve")[1:]]
    assert found == [(f"/v1/artifacts/{bad}/content", 200), (f"/v1/artifacts/{bad}/content", 403)]


def test_it_comes_in_pages(made: People) -> None:
    zoe = made.of("zoe")
    for _ in range(5):
        zoe.post("/v1/experiments/none:cancel")
    admin = made.of("root")
    found, link = [], "/v1/audit?owner=zoe&limit=2"
    while link is not None:
        page = admin.get(link).json()
        found += page["entries"]
        link = page["next"]
    assert list(reversed(found)) == entries(made, "zoe")
    assert len(found) == 5


def check_append_only(database: Database) -> None:
    """Neither our code's way to the database nor plain SQL can change or delete an entry."""
    entry = AuditEntry(
        at=utcnow(),
        request_id="r",
        owner="o",
        key=None,
        client="",
        method="POST",
        route="",
        path="",
        status=200,
    )
    with database.writing() as session:
        session.add(entry)
    for statement in (update(AuditEntry).values(owner="x"), delete(AuditEntry), text("DELETE FROM audit")):
        with pytest.raises(DatabaseError, match="append-only"), database.writing() as session:
            session.execute(statement)
    with database.reading() as session:
        assert session.get_one(AuditEntry, entry.id).owner == "o"


def check_pruning(database: Database, prune: Callable[[dict[str, Any]], Any]) -> None:
    """Old entries are deleted, by a policy that names their age, and no others."""

    def entry(days: float) -> AuditEntry:
        made = of_command("someone", "test", f"{days:g} days old")
        made.at = utcnow() - timedelta(days=days)
        return made

    with database.writing() as session:
        session.add_all(entry(days) for days in (500, 100, 32, 30.5, 29, 0))

    def left() -> list[str]:
        with database.reading() as session:
            query = select(AuditEntry.location).where(AuditEntry.route == "test").order_by(AuditEntry.id)
            return [str(location).split()[0] for location in session.scalars(query)]

    def report(**request: Any) -> list[tuple[str, int]]:
        answer = prune(request)
        assert answer.status_code == 200, answer.text
        items = answer.json()["items"]
        return [(item["what"], item["count"]) for item in items if item["part"] == "audit"]

    assert report(policy={}, delete=True) == []
    assert report(policy={"audit_days": 99}) == [("entries older than 99 days", 2)]
    assert left() == ["500", "100", "32", "30.5", "29", "0"]
    assert report(policy={"audit_days": 99}, delete=True) == [("entries older than 99 days", 2)]
    assert left() == ["32", "30.5", "29", "0"]
    assert report(policy={"audit_days": 31}, delete=True) == [("entries older than 31 days", 1)]
    assert left() == ["30.5", "29", "0"]
    refused = prune({"policy": {"audit_days": 30}})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "policy.audit_days")


def test_old_entries_are_deleted_by_the_policy(made: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "BATCH", 1)
    root = made.of("root")
    check_pruning(made.service.database, lambda body: root.post("/v1/housekeeping", json=body))


def test_the_database_refuses_to_change_it(made: People) -> None:
    check_append_only(made.service.database)
