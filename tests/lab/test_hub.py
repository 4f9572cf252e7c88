"""Datasets by their id, from a server on this machine that answers like the Hugging Face Hub."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.lab.test_import_layouts import levels, table
from worker.lab.contracts import LabError
from worker.lab.data import files
from worker.lab.data.hub import download_from_hub
from worker.lab.data.importing import StoredDataset, dataset_spec

PETS = {
    "default/train/0000.parquet": table(["cat", "dog"]),
    "default/train/0001.parquet": table(["dog", "cat"]),
    "default/validation/0000.parquet": table(["dog", "cat"]),
    "default/other/0000.parquet": b"not to be downloaded",
    ".gitattributes": b"",
}
CONVERTED = "refs/convert/parquet"
REPOSITORIES = {
    ("org/pets", CONVERTED): PETS,
    ("org/many", CONVERTED): {
        f"{c}/train/0000.parquet": PETS["default/train/0000.parquet"] for c in ("big", "small")
    },
    ("org/plain", "main"): {
        "data/train-00000-of-00001.parquet": table(["cat", "dog"]),
        "README.md": b"# Pets",
    },
    ("org/secret", CONVERTED): PETS,
}


class Hub(BaseHTTPRequestHandler):
    """Files are redirected, as the Hub does to its storage; a token is needed for one repository."""

    asked: list[str] = []  # noqa: RUF012  # shared by the requests

    def do_GET(self) -> None:
        path = self.path
        self.asked.append(path)
        for (name, revision), members in REPOSITORIES.items():
            if name == "org/secret" and self.headers.get("Authorization") != "Bearer open sesame":
                continue
            if path == f"/api/datasets/{name}/revision/{revision.replace('/', '%2F')}":
                siblings = [{"rfilename": file} for file in members]
                return self._send(
                    200, json.dumps({"id": name, "sha": f"{name[4:]}1", "siblings": siblings}).encode()
                )
            start = f"/datasets/{name}/resolve/{name[4:]}1/"
            if path.startswith(start) and unquote(path.removeprefix(start)) in members:
                return self._send(302, b"", f"/storage/{name}/{path.removeprefix(start)}")
            if path.startswith(f"/storage/{name}/"):
                return self._send(200, members[unquote(path.removeprefix(f"/storage/{name}/"))])
        return self._send(401, b'{"error": "Invalid username or password."}')

    def _send(self, status: int, body: bytes, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    Hub.asked.clear()
    yield url
    server.shutdown()
    server.server_close()


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker.lab.data", "import", *words, "--data-dir", str(home)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_dataset_is_imported_by_its_id(hub: str, tmp_path: Path) -> None:
    done = run(tmp_path, "hf:org/pets", "--json")
    assert done.returncode == 0, done.stderr
    stored = json.loads(done.stdout)
    assert stored["dataset"] == {"name": "imported", "key": "pets"}
    facts, sha256 = files.read_header(Path(stored["path"]))
    assert (facts.class_names, facts.train_counts, facts.test_counts) == (("cat", "dog"), (6, 6), (3, 3))
    skipped = "skipped 1 files that are not of a part named train, test or validation"
    assert stored["notes"] == [f"{skipped}, such as default/other/0000.parquet"]
    of_class = levels(StoredDataset(dataset_spec("pets"), Path(stored["path"]), facts, sha256))
    assert of_class == {"cat": {20}, "dog": {220}}
    assert not any("other" in path for path in Hub.asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imported"]  # the download is deleted


def downloaded(source: str, config: str | None, home: Path) -> list[str]:
    with download_from_hub(source, config, home) as (folder, _):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def test_which_files_are_downloaded(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert downloaded("hf:org/plain", None, tmp_path) == ["data/train-00000-of-00001.parquet"]
    assert downloaded("hf:org/many", "small", tmp_path) == ["small/train/0000.parquet"]
    monkeypatch.setenv("HF_TOKEN", "open sesame")
    assert len(downloaded("hf:org/secret", None, tmp_path)) == 3


@pytest.mark.parametrize(
    ("source", "config", "words"),
    [
        ("hf:org/many", None, "--config must be one of big, small"),
        ("hf:org/many", "huge", "--config must be one of big, small"),
        ("hf:org/none", None, "has no such dataset"),
        ("hf:org/secret", None, "HF_TOKEN may be required"),
        ("hf:../x", None, "hf:OWNER/NAME is"),
    ],
)
def test_what_is_refused(hub: str, tmp_path: Path, source: str, config: str | None, words: str) -> None:
    with pytest.raises(LabError) as caught, download_from_hub(source, config, tmp_path):
        pass
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"{}", b"[]", b'{"sha": 1, "siblings": [{}]}', b'{"siblings": 3}'])
def test_a_server_that_is_no_hub(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(Hub, "do_GET", lambda self: self._send(200, answer))
    with pytest.raises(LabError, match="does not answer as the Hub does"):
        downloaded("hf:org/pets", None, tmp_path)


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run(tmp_path, "hf:org/pets")
    assert done.returncode == 2
    assert done.stderr.startswith("bdlab: hf:org/pets could not be downloaded from http://127.0.0.1:9: ")
    assert done.stderr.count("\n") == 1
