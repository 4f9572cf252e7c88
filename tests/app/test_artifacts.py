"""Files: the list, and the bytes in whole and in part."""

import hashlib
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.database import utcnow
from app.core.errors import RangeError
from app.results.artifacts.service import file_name, parse_range
from app.tables.artifacts import Artifact
from tests.app.conftest import Service

DATA = os.urandom(700_000)


@pytest.fixture(scope="module")
def files(service: Service) -> dict[str, Any]:
    """An experiment with a picture and a backdoored checkpoint, as the API lists them."""
    experiment = service.submit()
    for name, kind, arm, media, data, details in [
        ("seed-0/abl/curves.png", "figure", "abl", "image/png", b"picture", {}),
        (
            "seed-0/undefended/model.safetensors",
            "checkpoint",
            "undefended",
            "application/octet-stream",
            DATA,
            {"backdoored": True},
        ),
        ("empty.txt", "data", None, "text/plain", b"", {}),
    ]:
        digest, key = service.store(data)
        service.add(
            Artifact(
                experiment_id=experiment["id"],
                arm=arm,
                seed=0 if arm else None,
                name=name,
                kind=kind,
                media_type=media,
                size=len(data),
                sha256=digest,
                object_key=key,
                details=details,
                created_at=utcnow(),
            )
        )
    found = service.http.get(experiment["links"]["artifacts"]).json()["artifacts"]
    return {"experiment": experiment, **{f["name"]: f for f in found}}


@pytest.fixture(scope="module")
def model(files: dict[str, Any]) -> str:
    return files["seed-0/undefended/model.safetensors"]["content"]


def test_the_list_is_filtered(service: Service, files: dict[str, Any]) -> None:
    link = files["experiment"]["links"]["artifacts"]

    def names(**parameters: Any) -> list[str]:
        return [a["name"] for a in service.http.get(link, params=parameters).json()["artifacts"]]

    assert names() == ["empty.txt", "seed-0/abl/curves.png", "seed-0/undefended/model.safetensors"]
    assert names(kind="figure") == names(arm="abl") == ["seed-0/abl/curves.png"]
    assert names(seed=0, kind="checkpoint") == ["seed-0/undefended/model.safetensors"]
    assert names(seed=1) == []
    assert service.http.get(link, params={"kind": "song"}).status_code == 422


def test_the_whole_file(service: Service, files: dict[str, Any], model: str) -> None:
    answer = service.http.get(model)
    assert answer.content == DATA
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["ETag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert answer.headers["X-Backdoored"] == "true"
    assert answer.headers["Content-Disposition"] == (
        'attachment; filename="seed-0_undefended_model.safetensors"'
    )
    picture = service.http.get(files["seed-0/abl/curves.png"]["content"])
    assert (picture.content, picture.headers["content-type"]) == (b"picture", "image/png")
    assert "X-Backdoored" not in picture.headers
    empty = service.http.get(files["empty.txt"]["content"])
    assert (empty.status_code, empty.content) == (200, b"")


def test_headers_alone(service: Service, model: str) -> None:
    answer = service.http.head(model)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(DATA))


def test_a_client_that_has_it_gets_nothing(service: Service, model: str) -> None:
    tag = service.http.head(model).headers["ETag"]
    answer = service.http.get(model, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert service.http.get(model, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=300000-600000", 300_000, 600_001),
        ("bytes=699999-", 699_999, 700_000),
        ("bytes=-5", 699_995, 700_000),
        ("bytes=5-9999999", 5, 700_000),
    ],
)
def test_a_part(service: Service, model: str, asked: str, start: int, stop: int) -> None:
    answer = service.http.get(model, headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == DATA[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/700000"


@pytest.mark.parametrize("asked", ["bytes=700000-", "bytes=9999999-99999999", "bytes=-0"])
def test_a_part_that_is_not_there(service: Service, model: str, asked: str) -> None:
    answer = service.http.get(model, headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */700000"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=1-2", "bytes=9-3", "bytes=-", "nonsense"])
def test_what_is_no_single_range_gives_the_whole(service: Service, model: str, asked: str) -> None:
    answer = service.http.get(model, headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, len(DATA))


def test_a_part_of_another_version_gives_the_whole(service: Service, model: str) -> None:
    headers = {"Range": "bytes=0-9", "If-Range": '"other"'}
    assert service.http.get(model, headers=headers).status_code == 200
    headers["If-Range"] = service.http.head(model).headers["ETag"]
    assert service.http.get(model, headers=headers).status_code == 206


def test_a_lost_file_is_said_so(service: Service, files: dict[str, Any]) -> None:
    artifact = files["seed-0/abl/curves.png"]
    digest = artifact["sha256"]
    service.objects.delete(f"sha256/{digest[:2]}/{digest}")
    answer = service.http.get(artifact["content"])
    assert (answer.status_code, "object store" in answer.json()["detail"]) == (404, True)
    service.store(b"picture")


def test_a_link_gives_the_file_without_a_key(service: Service, files: dict[str, Any]) -> None:
    artifact = files["seed-0/undefended/model.safetensors"]
    link = service.http.get(f"/v1/artifacts/{artifact['id']}/link").json()
    assert link["file_name"] == "seed-0_undefended_model.safetensors"
    assert (link["size"], link["sha256"], link["backdoored"]) == (len(DATA), artifact["sha256"], True)
    assert (
        timedelta(seconds=590)
        < datetime.fromisoformat(link["expires_at"]) - utcnow()
        <= timedelta(minutes=10)
    )
    with httpx2.Client() as anybody:
        whole = anybody.get(link["url"])
        assert (whole.status_code, whole.headers["X-Backdoored"]) == (200, "true")
        assert whole.content == DATA
        assert anybody.get(link["url"], headers={"Range": "bytes=5-9"}).content == DATA[5:10]
        assert anybody.head(link["url"]).headers["Content-Length"] == str(len(DATA))


def test_a_link_does_not_repeat_the_host_of_the_request(
    service: Service, files: dict[str, Any], serving: Any
) -> None:
    path = f"/v1/artifacts/{files['empty.txt']['id']}/link"
    foreign = {"Host": "elsewhere:1"}
    assert service.http.get(path, headers=foreign).json()["url"].startswith(f"{service.url}/v1/downloads/")
    assert "Location" not in service.http.get("/v1/experiments/", headers=foreign).headers
    with serving(service.settings.model_copy(update={"public_url": "https://bdlab.example.org/"})) as known:
        url = known.http.get(path, headers=foreign).json()["url"]
        assert url.startswith("https://bdlab.example.org/v1/downloads/")


@pytest.mark.parametrize(
    "change",
    [lambda t: t[:-2] + ("xy" if t[-2] != "x" else "yx"), lambda t: "x" + t, lambda t: t[:8], lambda t: "é"],
)
def test_a_link_that_was_changed_leads_nowhere(
    service: Service, files: dict[str, Any], change: Callable[[str], str]
) -> None:
    url = service.http.get(f"/v1/artifacts/{files['empty.txt']['id']}/link").json()["url"]
    front, _, token = url.rpartition("/")
    answer = httpx2.get(f"{front}/{change(token)}")
    assert (answer.status_code, "not issued" in answer.json()["detail"]) == (404, True)


def test_a_cursor_is_no_link(service: Service) -> None:
    service.submit()
    service.submit()
    cursor = parse_qs(urlsplit(service.http.get("/v1/experiments?limit=1").json()["next"]).query)["cursor"][0]
    assert service.http.get(f"/v1/downloads/{cursor}").status_code == 404


def test_a_link_expires(service: Service, files: dict[str, Any]) -> None:
    link = f"/v1/artifacts/{files['seed-0/abl/curves.png']['id']}/link"
    assert httpx2.get(service.http.get(link).json()["url"]).content == b"picture"
    url = service.http.get(link, params={"seconds": 1}).json()["url"]
    time.sleep(1.1)
    answer = httpx2.get(url)
    assert (answer.status_code, "expired" in answer.json()["detail"]) == (404, True)
    for seconds in (0, 86_401):
        assert service.http.get(link, params={"seconds": seconds}).status_code == 422


@given(st.text(max_size=70), st.integers(0, 1000))
def test_any_range_header_is_a_part_of_the_file_or_none(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            found = parse_range(text, size)
        except RangeError:
            continue
        assert found is None or 0 <= found.start < found.stop <= size


@given(st.text())
def test_any_name_is_safe_in_a_header(name: str) -> None:
    safe = file_name(Artifact(name=name))
    assert safe.isascii()
    assert not set(safe) & set('/\\"\r\n;')
    assert safe not in ("", ".", "..")
