"""Models and data sets over HTTP: sent, checked, named by specs, listed, deleted; and everything that is refused."""

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from sqlalchemy import select, update

from app.core.broker import CHECKS, Broker
from app.core.database import utcnow
from app.core.errors import StalledError
from app.data.uploads import repository, streaming
from app.data.uploads.dispatch import announce
from app.data.uploads.streaming import Form
from app.operations import schema
from app.settings import Settings
from app.tables.uploads import Upload
from tests.app.conftest import Service, Valkey, serve
from tests.app.people import people
from tests.app.sending import ABOUT, MODEL, pictures, post, sent_dataset, sent_model, weights
from tests.app.test_relay import sent
from tests.lab.test_import_layouts import gbk_zip
from tests.processes import wait_for
from worker import memory
from worker.checking import check

LIMIT = 300_000
NOBODY = "0192f3c0-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    with serve(Settings(home=home, max_upload_bytes=LIMIT, max_dataset_bytes=2**20)) as running:
        yield running


def files(service: Service) -> set[str]:
    """What lies in the object store under uploads/."""
    folder = service.settings.home_dir / "objects/uploads"
    return {path.name for path in folder.glob("*")} if folder.exists() else set()


@contextmanager
def nothing_kept(service: Service) -> Iterator[None]:
    before = files(service)
    yield
    assert files(service) == before


def ready_model(service: Service, data: bytes, **metadata: Any) -> str:
    model_id = sent_model(service.http, data, **metadata)
    assert check(model_id, service.settings) == "ready"
    return model_id


# Sending


def test_a_model_is_pending_then_ready(service: Service) -> None:
    data = weights(1)
    answer = post(
        service.http, "/v1/models", data, {**ABOUT, "sha256": sha256(data).hexdigest()}, "net.safetensors"
    )
    assert answer.status_code == 202
    model = answer.json()
    assert (model["status"], model["name"], model["size"]) == ("pending", "net.safetensors", len(data))
    assert model["sha256"] == sha256(data).hexdigest()
    assert answer.headers["Location"] == f"/v1/models/{model['id']}"
    spec = {"model": MODEL, "victim": {"model_id": model["id"]}}
    early = service.http.post("/v1/experiments", json=spec)
    assert (early.status_code, early.json()["errors"][0]["field"]) == (422, "victim.model_id")
    assert "pending" in early.json()["detail"]
    assert check(model["id"], service.settings) == "ready"
    model = service.http.get(f"/v1/models/{model['id']}").json()
    assert (model["status"], model["model"], model["parameters"]) == ("ready", MODEL, 1702)
    assert model["shape"] == {"channels": 1, "height": 8, "width": 8, "classes": 10}
    assert check(model["id"], service.settings) is None


def test_a_data_set_is_converted_and_can_be_named(service: Service) -> None:
    dataset_id = sent_dataset(service.http)
    assert check(dataset_id, service.settings) == "ready"
    found = service.http.get(f"/v1/datasets/{dataset_id}").json()
    assert found["facts"]["train_counts"] == [20, 20]
    assert found["dataset"] == {
        "name": "uploaded",
        "dataset_id": dataset_id,
        "train_size": None,
        "test_size": None,
    }
    assert {f"{dataset_id}.safetensors"} <= files(service)
    assert dataset_id not in files(service)
    spec = {"dataset": {"name": "uploaded", "dataset_id": dataset_id}, "training": {"batch_size": 20}}
    validated = service.http.post("/v1/experiments:validate", json=spec)
    assert validated.status_code == 200, validated.text
    wrong = service.http.post(
        "/v1/experiments", json={**spec, "attack": {"name": "badnets", "target_class": 2}}
    )
    assert "0 to 1, one of 2 classes" in wrong.json()["detail"]
    again = sent_dataset(service.http, name="the same under another name")
    assert check(again, service.settings) == "ready"
    other = service.http.post(
        "/v1/experiments:validate", json={**spec, "dataset": {"name": "uploaded", "dataset_id": again}}
    )
    assert [s["key"] for s in other.json()["stages"]] == [s["key"] for s in validated.json()["stages"]]


def test_sending_the_same_again_gives_the_same(service: Service) -> None:
    data = weights(2)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(service.http, "/v1/models", data, ABOUT), range(4)))
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["id"] for a in answers}) == 1
    assert sum("Idempotency-Replayed" in a.headers for a in answers) == 3
    assert len(files(service) & {answers[0].json()["id"]}) == 1
    other = post(service.http, "/v1/models", data, {**ABOUT, "name": "another"})
    assert other.json()["id"] != answers[0].json()["id"]
    assert "Idempotency-Replayed" not in other.headers


def test_the_examples_of_the_documentation_are_good(service: Service) -> None:
    paths = service.http.get("/openapi.json").json()["paths"]
    for path, data in (("/v1/models", b"x"), ("/v1/datasets", b"x")):
        content = paths[path]["post"]["requestBody"]["content"]["multipart/form-data"]
        answer = post(service.http, path, data, content["examples"]["example"]["value"]["metadata"])
        assert answer.status_code == 202, answer.text


# What is refused at once


@pytest.mark.parametrize(
    ("metadata", "detail"),
    [
        (b"{", "metadata: not valid JSON: "),
        (b"[" * 60_000, "metadata: nested too deeply"),
        (b"{}" + b" " * 70_000, "metadata: at most 65536 bytes"),
        ({"modle": 1}, "metadata.modle: unknown field; allowed: name, sha256, model, dataset, shape"),
        ({"model": MODEL}, "metadata: model and one of dataset and shape belong together"),
        (
            {**ABOUT, "shape": {"channels": 1, "height": 8, "width": 8, "classes": 10}},
            "give dataset or shape",
        ),
        (
            {**ABOUT, "model": {"name": "transformer"}},
            "metadata.model.name: unknown name; allowed: 'small_cnn'",
        ),
        ({"model": MODEL, "shape": {"channels": 1, "height": 8, "width": 8, "classes": 10**9}}, "10000"),
        ({**ABOUT, "sha256": "0" * 64}, "sha256: the file that arrived has the SHA-256 "),
        ({**ABOUT, "name": "a\0b"}, "name: the character U+0000"),
        (
            {"model": MODEL, "dataset": {"name": "imported", "key": "nothing"}},
            "dataset.key: there is no imported",
        ),
        (
            {"model": MODEL, "dataset": {"name": "uploaded", "dataset_id": NOBODY}},
            "no uploaded dataset with this id",
        ),
    ],
)
def test_bad_metadata(service: Service, metadata: Any, detail: str) -> None:
    with nothing_kept(service):
        answer = post(service.http, "/v1/models", b"data", metadata)
    assert answer.status_code in (413, 422), answer.text
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("metadata", "name", "detail"),
    [
        ({}, "pictures.rar", "format: allowed: npz, zip, parquet; or a file name"),
        ({"size": 32}, "a.npz", "size: allowed: null"),
        ({"test_fraction": 1.5}, "a.npz", "metadata.test_fraction: Input should be less than 1"),
        ({"format": "tar"}, "a.npz", "metadata.format: allowed: 'npz', 'zip' or 'parquet'"),
    ],
)
def test_bad_metadata_of_a_data_set(service: Service, metadata: Any, name: str, detail: str) -> None:
    with nothing_kept(service):
        answer = post(service.http, "/v1/datasets", b"data", metadata, name)
    assert answer.status_code == 422
    assert detail in answer.json()["detail"]


def test_bad_forms(service: Service) -> None:
    def send(body: bytes, kind: str = "multipart/form-data; boundary=b") -> httpx2.Response:
        return service.http.post("/v1/models", content=body, headers={"Content-Type": kind})

    part = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n'
    with nothing_kept(service):
        assert send(b"x", "application/json").status_code == 415
        assert send(b"x", "multipart/form-data").status_code == 415
        assert "not a multipart form" in send(b"nonsense").json()["detail"]
        assert "ends before the form is complete" in send(part).json()["detail"]
        assert "twice" in send(part + part + b"--b--\r\n").json()["detail"]
        assert "no part `file`" in send(b"--b--\r\n").json()["detail"]
        extra = post(service.http, "/v1/models", b"x", None, extra=("x", b"1"))
        assert "unknown part of the form; allowed: metadata, file" in extra.json()["detail"]
        assert "no part `file`" in post(service.http, "/v1/models", b"").json()["detail"]


def test_names_of_files_lead_nowhere(service: Service) -> None:
    for name in ("../../etc/passwd", "..\\..\\passwd", "/etc/passwd"):
        answer = post(service.http, "/v1/models", b"x" + name.encode(), ABOUT, name)
        assert answer.json()["name"] == "passwd"
        assert answer.json()["id"] in files(service)


def test_too_large_is_refused_before_and_while_it_comes(service: Service) -> None:
    with nothing_kept(service):
        answer = post(service.http, "/v1/models", bytes(LIMIT * 2), ABOUT)
        assert answer.status_code == 413
        head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'

        def endless() -> Iterator[bytes]:
            yield head
            for _ in range(100):
                yield bytes(LIMIT // 10)

        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = service.http.post("/v1/models", content=endless(), headers=kind)
        assert (answer.status_code, answer.json()["detail"]) == (
            413,
            f"file: at most {LIMIT} bytes are allowed",
        )


def test_a_sender_who_goes_away_leaves_nothing(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    before = files(service)
    with socket.create_connection((host, int(port))) as connection:
        lines = "POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        connection.sendall(f"{lines}Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode())
        connection.sendall(b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + bytes(1000))
        time.sleep(0.2)
    wait_for(lambda: files(service) == before, "the removal of the partial file")
    assert service.http.get("/healthz").status_code == 200


def test_a_body_that_stalls_or_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LONGEST_PAUSE_SECONDS", 0.05)

    async def body(pause: float) -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        for _ in range(100):
            await asyncio.sleep(pause)
            yield b"x"

    async def read(pause: float) -> None:
        form = Form("multipart/form-data; boundary=b", LIMIT)
        async for _ in form.file(body(pause)):
            pass

    with pytest.raises(StalledError, match="nothing arrived"):
        asyncio.run(read(1.0))
    with pytest.raises(StalledError, match="less than"):
        asyncio.run(read(0.01))


# What the check refuses


def refused(service: Service, upload_id: str, kind: str = "models") -> str:
    assert check(upload_id, service.settings) == "refused"
    found = service.http.get(f"/v1/{kind}/{upload_id}").json()
    assert found["status"] == "refused"
    assert upload_id not in files(service)
    return str(found["reason"])


def test_models_that_are_refused(service: Service) -> None:
    import torch  # noqa: PLC0415

    nan = torch.full((10,), float("nan"))
    cases = {
        b"PK\x03\x04 and so on, a zip by torch": "looks like a zip, as torch.save writes it",
        weights(head__bias=torch.zeros(9)): "'head.bias' has the shape [9]",
        weights(head__bias=torch.zeros(10, dtype=torch.bool)): "'head.bias' is of type BOOL",
        weights(extra=torch.zeros(1)): "unexpected tensors: 'extra'",
        weights(head__bias=nan): "holds NaN or infinity",
    }
    for data, reason in cases.items():
        model_id = sent_model(service.http, data)
        assert reason in refused(service, model_id)
    spec = {"model": MODEL, "victim": {"model_id": model_id}}
    answer = service.http.post("/v1/experiments", json=spec)
    assert "the model is refused: tensor 'head.bias' holds NaN" in answer.json()["detail"]
    bare = post(service.http, "/v1/models", weights(3)).json()["id"]
    assert "does not say what the model is" in refused(service, bare)


def test_data_sets_that_are_refused(service: Service) -> None:
    import numpy as np  # noqa: PLC0415

    cases: list[tuple[bytes, dict[str, Any], str]] = [
        (b"junk", {}, "file.npz is not an .npz archive"),
        (pictures(x_test=None, y_test=None), {}, "test_fraction: required, because the source has no test"),
        (pictures(y_train=np.arange(40)), {}, "y_test: class 2 (2) has no images"),
        (pictures(class_names=np.array(["cat", "d\0og"], dtype=object)), {}, "Python objects"),
        (pictures(class_names=np.array(["cat", "d\x1bog"])), {}, "the class name 'd\\x1bog' is not accepted"),
        (
            pictures(x_train=np.zeros((40, 200, 200), np.uint8)),
            {},
            "unpacks to 1.5 MiB; at most 1.0 are accepted",
        ),
        (b"PAR1 and no more", {"format": "parquet"}, "file.parquet is not readable parquet"),
        (b"junk", {"format": "zip"}, "file.zip is not a readable zip"),
    ]
    for data, metadata, reason in cases:
        small = data if len(data) < LIMIT else compressed(data)
        said = refused(service, sent_dataset(service.http, small, **metadata), "datasets")
        assert reason in said
        assert "/" not in said.partition(":")[0]


def test_an_upload_is_read_as_an_import_is(service: Service) -> None:
    """The Hub's layout in a zip, with a file that is not used."""
    import io  # noqa: PLC0415
    import zipfile  # noqa: PLC0415

    from tests.lab.test_import_layouts import table  # noqa: PLC0415

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("default/train/0000.parquet", table(["cat", "dog"]))
        archive.writestr("default/validation/0000.parquet", table(["dog", "cat"]))
        archive.writestr("README.md", "pets")
    dataset_id = sent_dataset(service.http, out.getvalue(), format="zip")
    assert check(dataset_id, service.settings) == "ready"
    dataset = service.http.get(f"/v1/datasets/{dataset_id}").json()
    assert dataset["facts"]["class_names"] == ["cat", "dog"]
    assert (dataset["facts"]["train_counts"], dataset["facts"]["test_counts"]) == ([3, 3], [3, 3])
    assert dataset["notes"] == ["skipped 1 files that are not parquet, such as README.md"]
    spec = {
        "dataset": dataset["dataset"],
        "training": {"batch_size": 4},
        "attack": {"name": "none"},
        "defenses": [],
    }
    assert service.http.post("/v1/experiments:validate", json=spec).status_code == 200


def compressed(npz: bytes) -> bytes:
    import io  # noqa: PLC0415
    import zipfile  # noqa: PLC0415

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


@pytest.mark.skipif(not memory.PROCESS_STATUS.exists(), reason="needs /proc")
def test_pictures_smaller_than_the_model_takes_are_refused_at_submission(service: Service) -> None:
    tiny = np.zeros((4, 2, 2, 3), np.uint8)
    dataset_id = sent_dataset(service.http, pictures(4, x_train=tiny, x_test=tiny), name="tiny2")
    assert check(dataset_id, service.settings) == "ready"
    spec = {"dataset": {"name": "uploaded", "dataset_id": dataset_id}, "attack": {"name": "none"}}
    spec |= {"training": {"batch_size": 2}}
    for route in ("experiments:validate", "experiments"):
        answer = service.http.post(f"/v1/{route}", json=spec)
        assert answer.status_code == 422
        assert [(error["field"], error["value"]) for error in answer.json()["errors"]] == [
            ("dataset", "images of 2x2 pixels")
        ]
        assert "at least 4x4 pixels, the least size of small_cnn" in answer.json()["errors"][0]["message"]
    fitting = {**spec, "model": {"name": "resnet18"}}
    assert service.http.post("/v1/experiments:validate", json=fitting).status_code == 200


def test_memory_can_be_bounded() -> None:
    with memory.limit_memory(2**26), pytest.raises(MemoryError):
        bytearray(2**28)
    assert len(bytearray(2**28)) == 2**28


# Specs that name uploads, and deletion


def test_a_victim_must_fit_the_spec(service: Service) -> None:
    model_id = ready_model(service, weights(4))
    victim = {"victim": {"model_id": model_id}}
    for spec, detail in (
        ({**victim}, 'model: allowed: the victim\'s architecture, {"name":"small_cnn","width":4}'),
        (
            {**victim, "model": MODEL, "dataset": {"name": "cifar10"}},
            "dataset: allowed: the images of the victim, 1x8x8, 10 classes",
        ),
        ({"victim": {"model_id": NOBODY}}, "there is no uploaded model with this id"),
        ({"victim": {"model_id": "../x"}}, "String should match pattern"),
        ({"victim": {}}, "victim.model_id: this field is required"),
    ):
        answer = service.http.post("/v1/experiments", json=spec)
        assert answer.status_code == 422
        assert detail in answer.json()["detail"]
    answer = service.http.post("/v1/experiments", json={**victim, "model": MODEL})
    assert answer.json()["spec"]["victim"] == {"model_id": model_id}
    assert "victim" not in service.submit()["spec"]


def test_what_a_spec_names_cannot_be_deleted(service: Service) -> None:
    model_id, dataset_id = ready_model(service, weights(5)), sent_dataset(service.http, pictures(44))
    assert check(dataset_id, service.settings) == "ready"
    small = {"training": {"batch_size": 20}}
    by_model = service.submit({"model": MODEL, "victim": {"model_id": model_id}})
    by_data = service.submit({**small, "dataset": {"name": "uploaded", "dataset_id": dataset_id}})
    for path, experiment in ((f"/v1/models/{model_id}", by_model), (f"/v1/datasets/{dataset_id}", by_data)):
        answer = service.http.delete(path)
        assert answer.status_code == 409
        assert experiment["id"] in answer.json()["detail"]
        service.http.post(experiment["links"]["cancel"])
        assert service.http.delete(experiment["links"]["self"]).status_code == 204
        assert service.http.delete(path).status_code == 204
        assert service.http.get(path).status_code == 404
        assert service.http.delete(path).status_code == 404
    assert not {model_id, f"{dataset_id}.safetensors"} & files(service)


def test_pages_and_states(service: Service) -> None:
    ids = [sent_model(service.http, b"page %d" % i) for i in range(3)]
    first = service.http.get("/v1/models?limit=2&status=pending").json()
    second = service.http.get(first["next"]).json()
    assert [m["id"] for m in first["models"] + second["models"]][:3] == ids[::-1]
    assert service.http.get("/v1/models?status=gone").status_code == 422
    assert service.http.get("/v1/datasets?sttus=ready").json()["errors"][0]["field"] == "sttus"
    assert service.http.get(f"/v1/datasets/{ids[0]}").status_code == 404


# Checks are not lost


def test_a_killed_check_is_announced_again_and_given_up_in_the_end(
    service: Service, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(valkey.url)
    with service.database.writing() as session:  # leave the others alone
        session.execute(update(Upload).where(Upload.status == "pending").values(status="refused"))
    model_id = sent_model(service.http, weights(6))
    announce(service.database, broker, 0.0)  # the API was killed after its commit: the row is the message
    assert sent(valkey, CHECKS) == [model_id]
    announce(service.database, broker, 0.0)
    assert sent(valkey, CHECKS) == [model_id], "the broker has it, so the workers are only busy"
    valkey.kill()
    (valkey.folder / "appendonlydir").rename(valkey.folder / "lost")
    valkey.start()
    announce(service.database, broker, 0.0)
    assert sent(valkey, CHECKS) == [model_id]
    for _ in range(service.settings.max_attempts):  # workers that take it and are killed
        with service.database.writing() as session:
            assert repository.claim_next(session, model_id, 60) is not None
            assert repository.claim_next(session, model_id, 60) is None
        assert check(model_id, service.settings) is None
        with service.database.writing() as session:
            session.execute(update(Upload).where(Upload.id == model_id).values(claimed_until=utcnow()))
    assert "started 3 times" in refused(service, model_id)
    broker.close()


def test_an_outage_of_the_store_puts_a_check_off(service: Service) -> None:
    model_id = sent_model(service.http, weights(7))
    folder = service.settings.home_dir / "objects/uploads"
    folder.rename(folder.with_name("away"))
    folder.write_text("no folder")
    try:
        assert check(model_id, service.settings) is None
    finally:
        folder.unlink()
        folder.with_name("away").rename(folder)
    with service.database.reading() as session:
        row = session.scalars(select(Upload).where(Upload.id == model_id)).one()
        assert (row.status, row.attempts) == ("pending", 0)
        assert row.claimed_until == row.due_at > utcnow()
    with service.database.writing() as session:  # a while later
        session.execute(update(Upload).where(Upload.id == model_id).values(claimed_until=utcnow()))
    assert check(model_id, service.settings) == "ready"


def test_a_check_whose_upload_is_deleted_leaves_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_id = sent_dataset(service.http, pictures(48))
    from worker import checking  # noqa: PLC0415

    look = checking._check_file

    def look_and_lose(*args: Any) -> Any:
        found = look(*args)
        assert service.http.delete(f"/v1/datasets/{dataset_id}").status_code == 204
        return found

    monkeypatch.setattr(checking, "_check_file", look_and_lose)
    with ThreadPoolExecutor(1):
        assert check(dataset_id, service.settings) is None
    assert not any(dataset_id in name for name in files(service))


# Owners


def test_uploads_are_their_owners_and_count_towards_the_quota(tmp_path: Path) -> None:
    with people(tmp_path, quota_bytes=20_000) as made:
        ann, bob = made.of("ann"), made.of("bob")
        data = weights(8)
        model_id = sent_model(ann, data)
        assert check(model_id, made.service.settings) == "ready"
        assert sent_model(bob, data) != model_id
        answer = bob.post("/v1/experiments", json={"model": MODEL, "victim": {"model_id": model_id}})
        assert "there is no uploaded model with this id" in answer.json()["detail"]
        sent_model(ann, data, name="again")
        answer = post(ann, "/v1/models", data, {**ABOUT, "name": "once more"})
        assert answer.status_code == 429
        assert "20000 stored bytes" in answer.json()["detail"]


def test_many_checks_of_one_owner_do_not_delay_those_of_another(tmp_path: Path) -> None:
    with people(tmp_path) as made:
        ann, bob, settings = made.of("ann"), made.of("bob"), made.service.settings
        many = [sent_model(ann, b"no model %d" % i) for i in range(15)]
        one = sent_model(bob)

        def checked(client: httpx2.Client) -> int:
            return len(client.get("/v1/models?status=refused").json()["models"])

        assert check(many[0], settings) == "refused"
        assert check(many[1], settings) == "refused"  # the message of Ann's second brings Bob's
        assert (checked(ann), checked(bob)) == (1, 1)
        another = sent_model(bob, b"another")
        for hint in (*many[2:], one, another):  # each message brings one, in whatever order
            assert check(hint, settings) == "refused"
        assert (checked(ann), checked(bob)) == (15, 2)
        assert check(one, settings) is None


def used(client: httpx2.Client) -> float:
    return float(client.get("/v1/me").json()["quotas"]["bytes"]["used"])


def test_what_counts_is_what_is_kept(tmp_path: Path) -> None:
    """A small archive that becomes large counts as what it becomes; what is refused or deleted counts nothing."""
    import numpy as np  # noqa: PLC0415

    flat = pictures(40, x_train=np.zeros((40, 50, 50), np.uint8), x_test=np.zeros((4, 50, 50), np.uint8))
    small = compressed(flat)
    assert len(small) < 5_000
    with people(tmp_path, quota_bytes=150_000) as made:
        ann, settings = made.of("ann"), made.service.settings
        first = sent_dataset(ann, small)
        assert used(ann) == len(small)
        assert check(first, settings) == "ready"
        (kept,) = (tmp_path / "objects/uploads").glob(f"{first}*")
        assert used(ann) == kept.stat().st_size > 44 * 50 * 50
        schema.downgrade(settings.database, "0016")
        schema.upgrade(settings.database)
        assert used(ann) == 44 * (50 * 50 + 8), (
            "older datasets count by their facts, without the file's header"
        )
        second = sent_dataset(ann, small, name="another")
        assert check(second, settings) == "refused"
        reason = ann.get(f"/v1/datasets/{second}").json()["reason"]
        assert "more bytes than its owner may store: the limit is 150000 stored bytes" in reason
        assert used(ann) == 44 * (50 * 50 + 8)
        assert list((tmp_path / "objects/uploads").glob("*")) == [kept]
        assert ann.delete(f"/v1/datasets/{first}").status_code == 204
        assert used(ann) == 0


def test_an_upload_of_unknown_size_is_counted_while_it_arrives(tmp_path: Path) -> None:
    """Four at once, of 64 MB each, under a quota of 1 MB."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    taken: list[int] = []

    def endless() -> Iterator[bytes]:
        yield head
        for number in range(1024):
            taken.append(number)
            yield bytes(2**16)

    with people(tmp_path, quota_bytes=10**6) as made, ThreadPoolExecutor(4) as pool:
        clients = [made.of("ann") for _ in range(4)]
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        answers = list(pool.map(lambda c: c.post("/v1/models", content=endless(), headers=kind), clients))
        assert [answer.status_code for answer in answers] == [429] * 4
        assert all("the limit is 1000000 stored bytes" in answer.json()["detail"] for answer in answers)
        assert len(taken) < 4 * 1024 / 2, "they were stopped before their end"
        assert not list((tmp_path / "objects/uploads").glob("*"))
        assert used(clients[0]) == 0


@pytest.mark.parametrize("path", ["/v1/datasets", "/v1/experiments/x/predict"])
def test_an_upload_that_breaks_off_is_no_error_of_the_service(
    service: Service, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level("INFO", "app")
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.npz"\r\n\r\n' + bytes(5000)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + part)
        time.sleep(0.1)  # so that the service reads the body
    wait_for(lambda: any(f"POST {path}" in one.message for one in caplog.records), "the line in the log", 10)
    assert not [one for one in caplog.records if one.exc_info or one.levelname == "ERROR"]
    (line,) = [one for one in caplog.records if one.message == f"POST {path}"]
    assert line.__dict__["status"] == 400
    uploads = service.settings.home_dir / "objects/uploads"
    assert not [file for file in uploads.rglob("*") if file.is_file() and file.stat().st_size == 5000]


def test_names_of_a_zip_are_decoded_as_the_metadata_say(service: Service, tmp_path: Path) -> None:
    data = gbk_zip(tmp_path / "gbk.zip").read_bytes()

    def send(**more: Any) -> httpx2.Response:
        return post(service.http, "/v1/datasets", data, {"test_fraction": 0.5, **more}, "gbk.zip")

    unsaid = send().json()["id"]
    assert check(unsaid, service.settings) == "refused"
    assert "zip_encoding: required" in service.http.get(f"/v1/datasets/{unsaid}").json()["reason"]
    said = send(zip_encoding="gbk").json()["id"]
    assert check(said, service.settings) == "ready"
    assert service.http.get(f"/v1/datasets/{said}").json()["facts"]["class_names"] == ["漒", "猫"]
    for metadata in ({"zip_encoding": "klingon"}, {"zip_encoding": "gbk", "format": "npz"}):
        answer = send(**metadata)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "zip_encoding")
