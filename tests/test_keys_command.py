"""`bdlab keys`: real processes on a database of their own, and a service that takes what they made."""

import json
from pathlib import Path

import pytest

from app.settings import Settings
from app.team.audit import repository
from tests.app.conftest import serve
from tests.test_cli import bdlab, fails


def test_keys_are_made_listed_used_limited_and_revoked(tmp_path: Path) -> None:
    home = {"BDLAB_HOME": str(tmp_path)}
    made = bdlab("keys", "create", "--owner", "ann", "--scope", "read", "--label", "laptop", **home)
    assert made.returncode == 0, made
    key = made.stdout.strip()
    prefix = key.split("_")[1]
    listed = bdlab("keys", "list", **home).stdout
    for shown in (prefix, "ann", "read", "laptop", "good"):
        assert shown in listed
    assert key.split("_", 2)[2] not in listed
    limits = bdlab("keys", "limits", "ann", "--running", "2", "--bytes", "5", **home)
    assert limits.stdout == "ann: running 2, bytes 5\n"
    with serve(Settings(home=tmp_path)) as service:
        there = {"BDLAB_URL": service.url, "BDLAB_API_KEY": key}
        assert "'write'" in fails(2, "submit", "-", stdin="{}", **there)
        assert "API key" in fails(2, "list", BDLAB_URL=service.url, BDLAB_API_KEY="")
        headers = {"Authorization": f"Bearer {key}"}
        quotas = service.http.get("/v1/me", headers=headers).json()["quotas"]
        assert (quotas["running"]["limit"], quotas["bytes"]["limit"]) == (2, 5)
    revoked = json.loads(bdlab("keys", "revoke", prefix, "--json", **home).stdout)
    assert (revoked["prefix"], revoked["revoked_at"] is None) == (prefix, False)
    with serve(Settings(home=tmp_path)) as service, service.database.reading() as session:
        noted = [(row.method, row.route, row.location) for row in repository.page(session, "local", None, 9)]
    assert noted[::-1] == [
        ("COMMAND", "bdlab keys create", f"/v1/keys/{prefix}"),
        ("COMMAND", "bdlab keys limits", "/v1/owners/ann/limits"),
        ("COMMAND", "bdlab keys revoke", f"/v1/keys/{prefix}"),
    ]


@pytest.mark.parametrize(
    ("code", "words", "named"),
    [
        (2, ["create", "--scope", "root"], "root"),
        (2, ["create", "--owner", "LOCAL"], "owner: differs only in case from 'local'"),
        (4, ["revoke", "nothing"], "nothing"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, code: int, words: list[str], named: str) -> None:
    assert named in fails(code, "keys", *words, BDLAB_HOME=str(tmp_path))
