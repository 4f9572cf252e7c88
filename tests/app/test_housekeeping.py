"""Retention and orphans: what may be deleted is, what is needed stays, and a dry run changes nothing."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select

from app.core.context import Context
from app.core.database import new_id, utcnow
from app.core.objects import content_key
from app.experiments.planning import plan_experiment
from app.operations.housekeeping import orphans
from app.operations.housekeeping.schedule import run_periodically
from app.operations.housekeeping.service import run_housekeeping
from app.operations.supervisor import child_environment
from app.results.artifacts import storage
from app.settings import RetentionPolicy, Settings
from app.specs.experiment import ExperimentSpec
from app.tables.artifacts import Artifact
from app.tables.experiments import Experiment, Stage
from app.tables.uploads import DATASET, READY, Upload, dataset_key
from tests.app.conftest import Service, serve
from tests.app.numbers import record
from tests.servers import S3, Postgres
from tests.test_cli import bdlab, fails

Serving = Callable[[Settings], AbstractContextManager[Service]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serve(Settings(home=tmp_path, data_dir=tmp_path / "data")) as running:
        yield running


def ended(service: Service, days: float, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """An experiment that succeeded so many days ago."""
    experiment = service.submit(spec)
    service.end(experiment["id"])
    with service.database.writing() as session:
        session.get_one(Experiment, experiment["id"]).finished_at = utcnow() - timedelta(days=days)
    return experiment


def file(
    service: Service, experiment: dict[str, Any], data: bytes, name: str = "", kind: str = "checkpoint"
) -> str:
    """The link to a new file of the experiment."""
    digest, key = service.store(data)
    row = Artifact(
        experiment_id=experiment["id"],
        seed=0,
        arm="undefended",
        name=name or f"{kind}-{digest[:8]}",
        kind=kind,
        media_type="application/octet-stream",
        size=len(data),
        sha256=digest,
        object_key=key,
        details={},
        created_at=utcnow() - timedelta(days=1),
    )
    service.add(row)
    with service.database.writing() as session:
        storage.update_stored_bytes(session, [experiment["id"]])
    return f"/v1/artifacts/{row.id}/content"


def stage(service: Service, number: int | str, days: float = 0, size: int = 10, **more: Any) -> str:
    """The key of a stage that was used so many days ago."""
    key = number if isinstance(number, str) else f"{number:064x}"
    at = utcnow() - timedelta(days=days)
    service.objects.put(f"stages/{key}.safetensors", b"s" * size)
    service.add(
        Stage(
            **{"key": key, "kind": "victim", "ready_at": at, "size": size, "sha256": "", "last_used_at": at}
            | more
        )
    )
    return key


def age(service: Service, key: str, days: float = 3) -> str:
    """Make an object of the folder older; returns its key."""
    path = service.settings.home / "objects" / key
    os.utime(path, (path.stat().st_mtime - days * 86_400,) * 2)
    return key


def ask(service: Service, policy: Any = None, delete: bool = False) -> dict[str, Any]:
    answer = service.http.post("/v1/housekeeping", json={"policy": policy, "delete": delete})
    assert answer.status_code == 200, answer.text
    return answer.json()


def counted(report: dict[str, Any], part: str) -> dict[str, int]:
    return {item["what"]: item["count"] for item in report["items"] if item["part"] == part}


def status(service: Service, link: str) -> int:
    return service.http.get(link).status_code


def check_retention(service: Service) -> None:
    old, young = ended(service, 100), ended(service, 10)
    kept = ended(service, 100, {"tags": {"keep": "yes"}})
    scratch = ended(service, 10, {"tags": {"study": "scratch"}})
    running = service.submit()
    service.start(running["id"])
    record(service, old["id"], {("undefended", 0): {"clean_accuracy": 0.9}})
    goes = (
        file(service, old, b"old", "seed-0/undefended/model.safetensors"),
        file(service, old, b"csv", kind="data"),
    )
    scratched = file(service, scratch, b"scratch")
    stays = [
        file(service, old, b"picture", kind="figure"),
        file(service, old, b"{}", "manifest.json", "data"),
        file(service, old, b"shared"),
        file(service, young, b"shared"),
        file(service, young, b"young"),
        file(service, kept, b"kept"),
        file(service, running, b"running"),
    ]
    policy = {"rules": [{"days": 90}, {"days": 7, "tag": "study:scratch", "kinds": ["checkpoint"]}]}
    told = ask(service, policy)
    assert not told["deleted"]
    assert sorted(counted(told, "retention").values()) == [1, 2]
    assert told["freed_bytes"] == len(b"old" + b"csv" + b"scratch")
    assert told["stored_bytes"] == told["freed_bytes"] + len(
        b"picture" + b"{}" + b"shared" + b"young" + b"kept" + b"running"
    )
    assert {status(service, link) for link in (*goes, scratched, *stays)} == {200}

    done = ask(service, policy, delete=True)
    assert done["items"] == told["items"]
    for link in (*goes, scratched):
        answer = service.http.get(link)
        assert (answer.status_code, answer.headers["content-type"]) == (410, "application/problem+json")
    assert "experiments tagged study:scratch are kept for 7 days" in answer.json()["detail"]
    assert {status(service, link) for link in stays} == {200}
    assert service.objects.get(content_key("0" * 64)) is None
    listed = service.http.get(old["links"]["artifacts"]).json()["artifacts"]
    assert [f["name"] for f in listed if f["expired_at"]] == sorted(
        f["name"] for f in listed if "90 days" in str(f["expired_why"])
    )
    assert service.http.get(old["links"]["results"]).json()["arms"]
    answer = service.http.post(old["links"]["predict"], json={"index": 0})
    assert (answer.status_code, "90 days" in answer.json()["detail"]) == (410, True)
    again = ask(service, policy, delete=True)
    assert (again["items"], again["freed_bytes"]) == ([], 0)


def test_files_go_by_age_and_tag_and_say_so(service: Service) -> None:
    check_retention(service)


def test_files_go_by_age_and_tag_on_postgresql(postgres: Postgres, tmp_path: Path, serving: Serving) -> None:
    with serving(Settings(home=tmp_path, data_dir=tmp_path, database_url=postgres.fresh())) as service:
        check_retention(service)
        check_size(service)
        check_stages(service)


def check_size(service: Service) -> None:
    links = [file(service, ended(service, days), bytes([days]) * 100) for days in (30, 50, 40)]
    figure = file(service, ended(service, 60), b"f" * 100, kind="figure")
    stages = [stage(service, days, days, size=100) for days in (2, 1)]
    stored = ask(service, {})["stored_bytes"]
    report = ask(service, {"max_bytes": stored - 250})
    assert [item["count"] for item in report["items"] if item["part"] in ("stages", "retention")] == [2, 1]
    assert report["freed_bytes"] == 300
    for _ in range(2):
        assert ask(service, {"max_bytes": stored - 250}, delete=True)["stored_bytes"] in (
            stored,
            stored - 300,
        )
    assert [status(service, link) for link in links] == [200, 410, 200]
    assert not any(service.objects.exists(f"stages/{key}.safetensors") for key in stages)
    assert "to store at most" in service.http.get(links[1]).json()["detail"]
    report = ask(service, {"max_bytes": 0}, delete=True)
    assert "nothing else may be deleted" in report["remarks"][0]
    assert [status(service, link) for link in (*links, figure)] == [410, 410, 410, 200]


def test_the_oldest_go_for_want_of_space(service: Service) -> None:
    check_size(service)


def check_stages(service: Service) -> None:
    spec = {"name": "waits", "seeds": [77]}
    waiting = service.submit(spec)
    context = Context.open(service.settings)
    wanted = stage(
        service, plan_experiment(context, ExperimentSpec.model_validate(spec)).stages[0].key, days=50
    )
    context.close()
    in_hand = stage(
        service, 1, 50, owner="x:1", lease_expires_at=utcnow() + timedelta(minutes=1), ready_at=None
    )
    young, old = stage(service, 2, days=20), stage(service, 3, days=50)
    dead = stage(service, 4, 50, owner="x:1", lease_expires_at=utcnow() - timedelta(minutes=1), ready_at=None)
    private = [stage(service, 5, experiment_id=e["id"]) for e in (ended(service, 5),)]
    private.append(stage(service, 6, experiment_id=new_id()))
    stays = [wanted, in_hand, young, stage(service, 7, experiment_id=waiting["id"])]
    report = ask(service, {"stage_days": 30}, delete=True)
    assert counted(report, "stages") == {
        "stages of reproductions that have ended": 2,
        "not used for 30 days": 2,
    }
    with service.database.reading() as session:
        assert set(session.scalars(select(Stage.key))) == set(stays)
    there = [service.objects.exists(f"stages/{key}.safetensors") for key in (*stays, old, dead, *private)]
    assert there == [True] * 4 + [False] * 4
    service.http.post(waiting["links"]["cancel"])
    assert ask(service, {"stage_days": 30}, delete=True)["items"][0]["count"] == 1


def test_stages_in_use_stay(service: Service) -> None:
    check_stages(service)


def test_no_stage_goes_while_it_is_not_known_what_is_needed(service: Service) -> None:
    waiting = service.submit()
    with service.database.writing() as session:
        row = session.get_one(Experiment, waiting["id"])
        row.lab_version -= 1  # so that its stages are planned again
        row.spec = row.spec | {"dataset": {"name": "imported", "key": "elsewhere"}}
    stage(service, 1, days=50)
    report = ask(service, {"stage_days": 30}, delete=True)
    assert counted(report, "stages") == {}
    assert waiting["id"] in report["remarks"][0]


def test_orphans_are_collected(service: Service) -> None:
    put = service.objects.put
    experiment = ended(service, 1)
    live = file(service, experiment, b"live")
    lost = file(service, experiment, b"lost")
    with service.database.reading() as session:
        [name] = session.scalars(select(Artifact.name).where(Artifact.id == lost.split("/")[3]))
        [lost_key] = session.scalars(select(Artifact.object_key).where(Artifact.id == lost.split("/")[3]))
    service.objects.delete(lost_key)
    digest, orphan = service.store(b"orphan")
    upload, hexes = new_id(), f"{9:064x}"
    data_set = Upload(
        id=new_id(),
        kind=DATASET,
        name="",
        status=READY,
        size=1,
        sha256="",
        request={},
        request_hash="",
        created_at=utcnow(),
        due_at=utcnow(),
    )
    service.add(data_set)
    keys = {
        orphan: b"orphan",
        f"stages/{hexes}.safetensors": b"x",
        f"checkpoints/{hexes}": b"x",
        f"uploads/{upload}": b"x",
        f"uploads/{upload}.safetensors": b"x",
        f"uploads/{data_set.id}": b"the source that was converted",
        f"doctor-{new_id()}": b"x",
    }
    for key, content in keys.items():
        put(key, content)
        age(service, key)
    put(dataset_key(data_set.id), b"converted")
    put("somebody/elses", b"x")
    for key in (dataset_key(data_set.id), "somebody/elses", content_key(digest)):
        age(service, key)
    _, fresh = service.store(b"about to get its row")
    half = service.settings.home / "objects" / f"{orphan}#1"
    fetched = service.settings.datasets / "uploaded" / f"{upload}.safetensors"
    partial, needed = fetched.with_name(".fetch-x"), fetched.with_name(f"{data_set.id}.safetensors")
    fetched.parent.mkdir(parents=True)
    for path in (half, fetched, partial, needed):
        path.write_bytes(b"x")
        os.utime(path, (path.stat().st_mtime - 3 * 86_400,) * 2)

    told = ask(service)
    assert sum(counted(told, "orphans").values()) == len(keys) + 3
    assert counted(told, "missing") == {"files of experiments without an object": 1}
    assert [i["examples"] for i in told["items"] if i["part"] == "missing"] == [
        [f"{experiment['id']}/{name}"]
    ]
    assert all(service.objects.exists(key) for key in keys)
    done = ask(service, delete=True)
    assert done["items"] == told["items"]
    assert not any(service.objects.exists(key) for key in keys)
    assert [path.exists() for path in (half, fetched, partial, needed)] == [False, False, False, True]
    assert all(service.objects.exists(key) for key in (fresh, dataset_key(data_set.id), "somebody/elses"))
    assert status(service, live) == 200
    assert counted(ask(service), "orphans") == {}


def test_orphans_of_a_bucket_are_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serving: Serving
) -> None:
    with S3() as s3, monkeypatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        with serving(Settings(home=tmp_path, data_dir=tmp_path, objects_url=s3.url)) as service:
            live = file(service, ended(service, 1), b"live")
            for number in range(1200):  # more than one page
                service.objects.put(f"uploads/{new_id()}", b"%d" % number)
            patch.setattr(orphans, "utcnow", lambda: utcnow() + timedelta(days=2))
            context = Context.open(service.settings)
            report = run_housekeeping(context, None, delete=True)
            assert sum(item.count for item in report.items if item.part == "orphans") == 1200
            assert [len(page) for page in service.objects.listing()] == [1]
            assert status(service, live) == 200
            context.close()


def test_content_that_is_written_again_meanwhile_stays(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the deletion of an experiment's rows and that of its files another one gets the same file."""
    first, second = ended(service, 1), ended(service, 1)
    file(service, first, b"same")
    links: list[str] = []
    real = storage.referenced

    def referenced(*arguments: Any) -> set[str]:
        if not links:
            links.append("")
            storage_session = arguments[0]
            digest, key = service.store(b"same")
            row = Artifact(
                experiment_id=second["id"],
                name="same",
                kind="data",
                media_type="",
                size=4,
                sha256=digest,
                object_key=key,
                details={},
                created_at=utcnow(),
            )
            storage_session.add(row)
            storage_session.flush()
            links[0] = f"/v1/artifacts/{row.id}/content"
        return real(*arguments)

    monkeypatch.setattr(storage, "referenced", referenced)
    assert service.http.delete(first["links"]["self"]).status_code == 204
    assert service.http.get(links[0]).content == b"same"


def test_an_expired_file_does_not_count_as_stored(service: Service) -> None:
    experiment = ended(service, 100)
    file(service, experiment, b"12345")
    assert service.http.get("/v1/me").json()["quotas"]["bytes"]["used"] == 5
    ask(service, {"rules": [{"days": 90}]}, delete=True)
    assert service.http.get("/v1/me").json()["quotas"]["bytes"]["used"] == 0
    assert service.http.delete(experiment["links"]["self"]).status_code == 204


def test_a_policy_that_is_wrong_names_the_field(service: Service) -> None:
    for policy, field in (
        ({"rules": [{"days": 0}]}, "policy.rules[0].days"),
        ({"rules": [{"days": 1, "kinds": []}]}, "policy.rules[0].kinds"),
        ({"keep": ["a" * 65]}, "policy.keep[0]"),
        ({"max_bytes": -1}, "policy.max_bytes"),
        ({"grace_hours": 0}, "policy.grace_hours"),
        ({"older": 1}, "policy.older"),
    ):
        answer = service.http.post("/v1/housekeeping", json={"policy": policy, "delete": True})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_the_relay_applies_the_policy_of_the_settings(service: Service) -> None:
    goes = file(service, ended(service, 100), b"old")
    stop = threading.Event()
    run_periodically(service.settings, stop)  # there is no policy, so it returns at once
    assert status(service, goes) == 200
    settings = service.settings.model_copy(
        update={"retention": RetentionPolicy.model_validate({"rules": [{"days": 90}]})}
    )
    thread = threading.Thread(target=run_periodically, args=(settings, stop))
    thread.start()
    for _ in range(500):
        if status(service, goes) == 410:
            break
        stop.wait(0.02)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert status(service, goes) == 410


def test_the_policy_reaches_the_children_of_the_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDLAB_RETENTION", '{"rules": [{"days": 90, "tag": "a:b"}], "max_bytes": 5}')
    settings = Settings(home=tmp_path)
    for name, value in child_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings().retention == settings.retention != None  # noqa: E711
    monkeypatch.setenv("BDLAB_RETENTION", "")
    assert Settings().retention is None


def test_the_command(service: Service, tmp_path: Path) -> None:
    goes = file(service, ended(service, 100), b"old")
    home = {"BDLAB_HOME": str(service.settings.home), "BDLAB_DATA_DIR": str(service.settings.datasets)}
    policy = tmp_path / "policy.json"
    policy.write_text('{"rules": [{"days": 90}]}')
    told = bdlab("gc", "--policy", str(policy), **home)
    assert (told.returncode, told.stderr) == (0, "")
    assert "1, 3 bytes, to be deleted" in told.stdout
    assert told.stdout.splitlines()[-1] == "this was a dry run; --delete does it"
    assert status(service, goes) == 200
    done = bdlab("gc", "--delete", "--json", BDLAB_RETENTION=policy.read_text(), **home)
    assert json.loads(done.stdout)["freed_bytes"] == 3
    assert status(service, goes) == 410
    policy.write_text('{"rules": [{"days": "soon"}]}')
    assert "rules.0.days" in fails(2, "gc", "--policy", str(policy), **home)
    assert "BDLAB_RETENTION" in fails(2, "gc", BDLAB_RETENTION="{", **home)


def test_a_stage_of_a_reproduction_is_its_own(service: Service) -> None:
    """A reproduction that is deleted takes its row away, and its stages are found all the same."""
    original = ended(service, 5)
    again = service.http.post(f"/v1/experiments/{original['id']}:reproduce").json()
    service.end(again["id"])
    key = stage(service, 8, experiment_id=again["id"])
    assert counted(ask(service), "stages") == {}  # it may be retried for a day
    with service.database.writing() as session:
        session.execute(delete(Experiment).where(Experiment.id == again["id"]))
    ask(service, delete=True)
    assert not service.objects.exists(f"stages/{key}.safetensors")
