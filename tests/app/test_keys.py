"""API keys over HTTP: making, using, revoking them, and the service before there are any."""

import base64
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, update

from app.core.database import utcnow
from app.tables.keys import ApiKey
from bdlab import Client
from bdlab.errors import ApiError
from tests.app.conftest import Service, wait_for
from tests.app.people import ALL, People, people, stored, submitted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with people(tmp_path_factory.mktemp("home")) as running:
        yield running


FORWARDED = [
    ("X-Forwarded-For", "203.0.113.7"),
    ("X-Forwarded-For", "unknown"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Forwarded-For", ""),
    ("X-Forwarded-Host", "localhost"),
    ("X-Forwarded-Proto", "https"),
    ("X-Real-IP", "127.0.0.1"),
    ("Forwarded", "for=127.0.0.1"),
    ("Via", "1.1 squid"),
    ("CF-Connecting-IP", "127.0.0.1"),
    ("True-Client-IP", "127.0.0.1"),
    ("X-Original-Forwarded-For", "127.0.0.1"),
]
"""What proxies add, some with a claim to come from here."""


def test_without_any_key_the_service_is_open_to_this_machine_alone(service: Service) -> None:
    me = service.http.get("/v1/me").json()
    assert (me["open"], me["owner"], me["key"], set(me["scopes"])) == (True, "local", None, set(ALL))
    for path in ("/v1/me", "/"):
        for header, value in FORWARDED:
            far = service.http.get(path, headers={header: value})
            assert far.status_code == 401, header
            assert "bdlab keys create" in far.text
    # A foreign page whose name was made to lead to 127.0.0.1.
    rebound = service.http.get("/v1/me", headers={"Host": "evil.example:8000"})
    assert (rebound.status_code, "evil.example" in rebound.json()["detail"]) == (403, True)
    assert service.http.get("/v1/me", headers={"Host": "localhost:1"}).status_code == 200


def test_the_first_key_closes_the_service_and_revoking_it_does_not_open_it(tmp_path: Path) -> None:
    with people(tmp_path) as made:
        wait_for(lambda: made.service.http.get("/v1/me").status_code == 401, "the closing")
        first = made.of("root")
        for key in first.get("/v1/keys").json()["keys"]:
            first.post(f"/v1/keys/{key['id']}:revoke").raise_for_status()
        wait_for(lambda: first.get("/v1/me").status_code == 401, "the revoking")
        assert made.service.http.get("/v1/me").status_code == 401


def test_a_key_is_made_used_and_revoked(made: People) -> None:
    admin = made.of("root")
    body = {"owner": "carol", "scopes": ["read"], "label": "laptop", "expires_in_days": 7}
    answer = admin.post("/v1/keys", json=body)
    assert answer.status_code == 201
    new = answer.json()
    assert new["key"].startswith(f"bdlab_{new['prefix']}_")
    carol = made.client(new["key"])
    me = carol.get("/v1/me").json()
    assert (me["owner"], me["key"], me["scopes"], me["open"]) == ("carol", new["prefix"], ["read"], False)
    shown = admin.get(f"/v1/keys/{new['id']}").json()
    assert shown == admin.get(f"/v1/keys/{new['prefix']}").json()
    assert "key" not in shown
    assert shown["last_used_at"] is not None
    listed = admin.get("/v1/keys")
    assert new["key"].split("_", 2)[2] not in listed.text
    with made.service.database.reading() as session:
        row = session.get_one(ApiKey, new["id"])
    assert new["key"].split("_", 2)[2] not in str(vars(row))
    revoked = admin.post(f"/v1/keys/{new['prefix']}:revoke").json()
    assert revoked["revoked_at"] is not None
    assert admin.post(f"/v1/keys/{new['id']}:revoke").json() == revoked
    wait_for(lambda: carol.get("/v1/me").status_code == 401, "the revoking")
    assert "revoked" in carol.get("/v1/me").json()["detail"]


def test_a_key_that_has_expired_is_refused_with_the_time(made: People) -> None:
    key = made.key("dave")
    with made.service.database.writing() as session:
        past = utcnow() - timedelta(seconds=1)
        session.execute(update(ApiKey).where(ApiKey.prefix == key.split("_")[1]).values(expires_at=past))
    answer = made.client(key).get("/v1/me")
    assert answer.status_code == 401
    assert past.isoformat(timespec="seconds") in answer.json()["detail"]


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer nonsense",
        "Bearer bdlab_aaaaaaaa_" + "a" * 43,
        "Basic nonsense",
        "Basic " + base64.b64encode(b"ann:wrong").decode(),
        "Digest x",
    ],
)
def test_other_credentials_are_refused(made: People, header: str) -> None:
    assert made.service.http.get("/v1/me", headers={"Authorization": header}).status_code == 401


def test_a_changed_secret_part_is_refused(made: People) -> None:
    key = made.key("ann")
    changed = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert made.client(key).get("/v1/me").status_code == 200
    assert made.client(changed).get("/v1/me").status_code == 401


def test_another_pepper_voids_every_key(made: People, tmp_path: Path) -> None:
    key = made.key("ann")
    url = f"sqlite:///{made.service.settings.home_dir / 'bdlab.sqlite3'}"
    with people(tmp_path, database_url=url, key_pepper="other") as other:
        assert other.client(key).get("/v1/me").status_code == 401
        assert other.of("ann").get("/v1/me").status_code == 200


def test_a_browser_may_send_the_key_as_a_password(made: People) -> None:
    page = made.service.http.get("/v1/me", headers={"Accept": "text/html"})
    assert page.headers["WWW-Authenticate"].startswith("Basic ")
    answer = httpx2.get(f"{made.service.url}/v1/me", auth=("anything", made.key("ann")))
    assert answer.json()["owner"] == "ann"


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_foreign_page_cannot_use_what_the_browser_remembers(made: People, headers: dict[str, str]) -> None:
    ann = made.of("ann")
    answer = ann.post("/v1/experiments", json={}, headers=headers)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (403, "forbidden")
    same = {"Origin": made.service.url, "Sec-Fetch-Site": "same-origin"}
    assert ann.post("/v1/experiments", json={}, headers=same).status_code == 202


def test_keys_and_owners_come_in_pages(made: People) -> None:
    admin = made.of("root")
    for number in range(5):
        made.key(f"page-{number}")
    for what in ("keys", "owners"):
        everything = admin.get(f"/v1/{what}", params={"limit": 200}).json()
        assert everything["next"] is None
        found, link = [], f"/v1/{what}?limit=2"
        while link is not None:
            page = admin.get(link).json()
            assert len(page[what]) <= 2
            found += page[what]
            link = page["next"]
        assert found == everything[what]
    assert admin.get("/v1/keys", params={"cursor": "x"}).status_code == 400


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes[0]"),
        ({"owner": "a b"}, "owner"),
        ({"label": "a\0b"}, "label"),
        ({"expires_in_days": 0}, "expires_in_days"),
        ({"admin": True}, "admin"),
    ],
)
def test_a_wrong_request_names_the_field(made: People, body: dict[str, Any], field: str) -> None:
    answer = made.of("root").post("/v1/keys", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_owners_that_differ_only_in_case_are_refused(made: People) -> None:
    root = made.of("root")
    assert root.post("/v1/keys", json={"owner": "Vision-Team"}).status_code == 201
    answer = root.post("/v1/keys", json={"owner": "vision-team"})
    assert (answer.status_code, answer.json()["errors"][0]["value"]) == (422, "vision-team")
    assert "differs only in case from 'Vision-Team'" in answer.json()["detail"]
    assert root.post("/v1/keys", json={"owner": "Vision-Team"}).status_code == 201


def test_what_carries_a_backdoor_needs_its_own_scope(made: People) -> None:
    ann, careful = made.of("ann"), made.of("ann", "read", "write")
    experiment = submitted(ann)
    bad = stored(made.service, experiment, b"bad", backdoored=True)
    good = stored(made.service, experiment, b"good", backdoored=False)
    for method in ("GET", "HEAD"):
        refused = careful.request(method, f"/v1/artifacts/{bad}/content")
        assert refused.status_code == 403
        assert careful.request(method, f"/v1/artifacts/{good}/content").status_code == 200
        assert ann.request(method, f"/v1/artifacts/{bad}/content").status_code == 200
    assert careful.get(f"/v1/artifacts/{bad}/link").status_code == 403
    assert "'artifacts:backdoored'" in careful.get(f"/v1/artifacts/{bad}/content").json()["detail"]


def test_a_link_for_somebody_elsewhere_is_a_path(made: People) -> None:
    """The service does not know under which name a proxy has it, and does not believe the request."""
    eve = made.of("eve")
    link = f"/v1/artifacts/{stored(made.service, submitted(eve))}/link"
    assert (
        eve.get(link, headers={"Host": "evil"}).json()["url"].startswith(f"{made.service.url}/v1/downloads/")
    )
    forwarded = {"Host": "evil", "X-Forwarded-For": "203.0.113.7"}
    assert eve.get(link, headers=forwarded).json()["url"].startswith("/v1/downloads/")


def test_the_use_of_a_key_is_noted_once_a_minute(made: People) -> None:
    key = made.key("ann")
    client = made.client(key)

    def noted() -> Any:
        with made.service.database.reading() as session:
            return session.scalar(select(ApiKey.last_used_at).where(ApiKey.prefix == key.split("_")[1]))

    assert noted() is None
    client.get("/v1/me")
    first = noted()
    assert first is not None
    time.sleep(1.1)  # longer than what is found is remembered
    client.get("/v1/me")
    assert noted() == first


def test_the_client_sends_its_key_also_for_streams_and_files(
    made: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDLAB_API_KEY", made.key("ann"))
    with Client(made.service.url) as client:
        experiment = client.submit({})
        stored(made.service, experiment["id"], b"bad", backdoored=True)
        made.service.end(experiment["id"])
        assert [e["data"]["status"] for e in client.events(experiment["id"])][-1] == "succeeded"
        (artifact,) = client.artifacts(experiment["id"])
        assert client.download(artifact, tmp_path / "file").read_bytes() == b"bad"
        assert client.me()["owner"] == "ann"
    with (
        Client(made.service.url, api_key="wrong") as client,
        pytest.raises(ApiError, match="API key") as error,
    ):
        client.me()
    assert error.value.status == 401


@pytest.mark.parametrize("path", ["/v1/me", "/v1/keys", "/v1/owners", "/v1/audit", "/v1/owners/root/limits"])
def test_an_unknown_parameter_is_an_error(made: People, path: str) -> None:
    answer = made.of("root").get(path, params={"ower": "ann"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "ower")
