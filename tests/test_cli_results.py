"""`bdlab results|leaderboard|compare|reproduce|reproduction` and the client's calls behind them, on a real run."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bdlab import Client
from bdlab.errors import ApiError, NotFoundError
from tests.conftest import Stack
from tests.quick import QUICK
from tests.test_cli import bdlab

TAGS = {"study": "cli-results"}


@pytest.fixture(scope="module")
def ids(stack: Stack) -> list[str]:
    """Two experiments that share what they can; the second has no defense."""
    specs: list[dict[str, Any]] = [{**QUICK, "tags": TAGS}, {**QUICK, "tags": TAGS, "defenses": []}]
    made = [stack.submit(spec) for spec in specs]
    return [stack.wait(one)["id"] for one in made]


def test_the_commands_show_what_the_api_gives(stack: Stack, ids: list[str], tmp_path: Path) -> None:
    def run(*words: str, code: int = 0) -> str:
        done = bdlab(*words, BDLAB_URL=stack.url)
        assert done.returncode == code, done
        return done.stdout or done.stderr

    mine = ("--where", "tag.study=cli-results", "--where", "arm=undefended")
    rows = json.loads(run("results", *mine, "--json"))
    assert [row["experiment_id"] for row in rows] == ids[::-1]
    table = run("results", *mine, "--fields", "experiment_id,attack.name", "--limit", "1")
    assert ids[1] in table
    assert ids[0] not in table
    text = run("results", *mine, "--csv", "--fields", "arm,results.clean_accuracy")
    assert len(list(csv.DictReader(io.StringIO(text)))) == 2
    file = tmp_path / "rows.parquet"
    run("results", *mine, "--format", "parquet", "--out", str(file))
    assert pq.read_table(file).num_rows == 2
    assert "did you mean attack.name" in run("results", "--where", "attak.name=sig", code=2)
    assert "either an ID" in run("results", ids[0], "--sort", "name", code=2)
    assert "--out" in run("results", "--format", "parquet", code=2)
    assert "| badnets |" in run("leaderboard")
    assert "published: abl_paper" in run("leaderboard", "--dataset", "cifar10")
    compared = run("compare", *ids)
    assert "difference to the first" in compared
    assert "+0.0 %" in compared  # the second took its victim from the cache
    assert "seeds" in run("compare", *ids, "--table", "spec", "--format", "csv")
    assert "is not a reproduction" in run("reproduction", ids[0], code=4)
    agrees = run("reproduce", ids[1], "--watch")
    assert "agrees: " in agrees
    assert "the same kind of CPU" in agrees


def test_the_client_asks_the_same(stack: Stack, ids: list[str]) -> None:
    with Client(stack.url) as client:
        found = list(client.search("tag.study=cli-results", "arm!=abl", sort="arm", limit=1, fields="arm"))
        assert [row["arm"] for row in found] == ["undefended"] * len(found)
        assert len(found) >= 2
        board = client.leaderboard("digits", "small_cnn", poisoning_rate=0.1)
        assert "badnets" in board["attacks"]
        assert client.compare(ids, points=2)["experiments"][0]["id"] == ids[0]
        assert client.manifest(ids[0])["seeds"] == QUICK["seeds"]
        made = client.reproduce(ids[0], idempotency_key="once")
        assert client.reproduce(ids[0], idempotency_key="once")["id"] == made["id"]
        assert client.reproduction(made["id"])["reproduces"] == ids[0]
        client.cancel(made["id"])
        with pytest.raises(ApiError, match="unknown field"):
            list(client.search("attak.name=sig"))
        with pytest.raises(NotFoundError):
            client.manifest("nothing")
