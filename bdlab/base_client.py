"""The typed HTTP client: one method a route. The `bdlab` command uses nothing else.

with Client("http://127.0.0.1:8000") as client:
    experiment = client.submit({"attack": {"name": "sig"}, "defenses": [{"name": "abl"}]})
    client.wait(experiment["id"])
    print(client.results(experiment["id"]))
"""

import hashlib
import json
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import httpx2

from app.specs.experiment import ExperimentSpec
from app.specs.status import TERMINAL
from bdlab.errors import (
    DamagedDownloadError,
    UnreachableError,
    WaitTimeoutError,
    error_from,
)
from bdlab.result_calls import ResultsCalls
from bdlab.sweeps import Studies, Sweeps
from bdlab.types import Artifact, Event, Experiment, LogLine, Results
from bdlab.uploads import Datasets, Models
from bdlab.webhooks import Webhooks

Json = dict[str, Any]
_V1 = "/v1/experiments"


class Client(ResultsCalls):
    """Talks to one service. For ``patience`` seconds a broken connection, a 429 or a 503 is tried again.

    Only calls that may safely be repeated are: reading, and submitting, which carries an Idempotency-Key.
    Every method raises UnreachableError, or ApiError with what the service said.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, patience: float = 10.0, timeout: float = 30.0
    ) -> None:
        """``api_key``: None takes the environment's BDLAB_API_KEY, if there is one."""
        self.url = url.rstrip("/")
        self._patience = patience
        key = api_key if api_key is not None else os.environ.get("BDLAB_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=self.url, timeout=timeout, headers=headers)
        self.sweeps, self.studies = Sweeps(self), Studies(self)
        self.models, self.datasets = Models(self), Datasets(self)
        self.webhooks = Webhooks(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Experiments

    def submit(self, spec: ExperimentSpec | Json, *, idempotency_key: str | None = None) -> Experiment:
        """Submit an experiment. The key, by default a fresh one, makes repeating the call safe."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        answer = self._call("POST", _V1, json=_json(spec), headers=headers, repeat=True)
        return cast(Experiment, answer.json())

    def validate(self, spec: ExperimentSpec | Json) -> Json:
        """Check a spec without running it: its canonical form, hash, and which stages are cached already."""
        return self._object("POST", f"{_V1}:validate", json=_json(spec), repeat=True)

    def experiments(self, **filters: Any) -> Iterator[Experiment]:
        """Experiments, newest first, page by page; ``filters`` are those of the route (status, tag, ...)."""
        page = self._object("GET", _V1, params=filters, repeat=True)
        while True:
            yield from page["experiments"]
            if not page.get("next"):
                return
            page = self._object("GET", page["next"], repeat=True)

    def experiment(self, id: str) -> Experiment:
        """Status, progress, attempts."""
        return cast(Experiment, self._object("GET", f"{_V1}/{id}", repeat=True))

    def cancel(self, id: str) -> Experiment:
        """Ask to stop; a running experiment ends within one batch."""
        return cast(Experiment, self._object("POST", f"{_V1}/{id}:cancel"))

    def retry(self, id: str) -> Experiment:
        """Queue an experiment that has ended once more."""
        return cast(Experiment, self._object("POST", f"{_V1}/{id}:retry"))

    def delete(self, id: str) -> None:
        """Remove an experiment that is not running, with its files."""
        self._call("DELETE", f"{_V1}/{id}")

    def wait(
        self,
        id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Experiment], None] | None = None,
    ) -> Experiment:
        """Poll until the experiment has ended; raises WaitTimeoutError after ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.2
        while True:
            experiment = self.experiment(id)
            if on_progress:
                on_progress(experiment)
            if experiment["status"] in TERMINAL:
                return experiment
            if end is not None and time.monotonic() + pause > end:
                raise WaitTimeoutError(f"experiment {id} is still {experiment['status']} after {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.3, 2.0)

    # What an experiment tells and leaves

    def results(self, id: str) -> Results:
        """Numbers per arm and seed, and aggregated."""
        return cast(Results, self._object("GET", f"{_V1}/{id}/results", repeat=True))

    def results_csv(self, id: str) -> str:
        """The same as CSV, one row per arm and seed."""
        headers = {"Accept": "text/csv"}
        return self._call("GET", f"{_V1}/{id}/results", headers=headers, repeat=True).text

    def metrics(self, id: str, **query: Any) -> Json:
        """Time series; ``query``: arm, name, seed, points (at most so many a series)."""
        return self._object("GET", f"{_V1}/{id}/metrics", params=query, repeat=True)

    def logs(self, id: str, **query: Any) -> list[LogLine]:
        """Lines of the worker's log; ``query``: offset, limit, tail."""
        text = self._call("GET", f"{_V1}/{id}/logs", params=query, repeat=True).text
        return [json.loads(line) for line in text.split("\n") if line]

    def events_after(self, id: str, after: int = 0) -> list[Event]:
        """The events later than ``after``, at once, for those who poll."""
        headers = {"Accept": "application/json"}
        page = self._object(
            "GET", f"{_V1}/{id}/events", params={"after": after}, headers=headers, repeat=True
        )
        return cast(list[Event], page["events"])

    def events(self, id: str, after: int = 0) -> Iterator[Event]:
        """Events as they happen, until the experiment has ended; a broken stream is taken up where it broke.

        Where server-sent events do not get through (a proxy that changes them), it polls.
        """
        streaming, broken_since = True, 0.0
        while True:
            try:
                for event in self._stream(id, after) if streaming else self.events_after(id, after):
                    after, broken_since = event["id"], 0.0
                    yield event
                if self.experiment(id)["status"] in TERMINAL and not self.events_after(id, after):
                    return
            except httpx2.SSEError:
                streaming = False
            except httpx2.TransportError as error:
                broken_since = broken_since or time.monotonic()
                if time.monotonic() - broken_since > self._patience:
                    raise UnreachableError(f"the events of {id} broke off: {error}") from error
            time.sleep(0.5)

    def artifacts(self, id: str, **filters: Any) -> list[Artifact]:
        """The experiment's files; ``filters``: kind, arm, seed."""
        listed = self._object("GET", f"{_V1}/{id}/artifacts", params=filters, repeat=True)
        return cast(list[Artifact], listed["artifacts"])

    def download(self, artifact: Artifact, path: Path) -> Path:
        """Stream a file to ``path``, all or nothing; raises DamagedDownloadError if its digest is wrong."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".download-")
        digest = hashlib.sha256()
        try:
            with os.fdopen(handle, "wb") as file:
                for piece in self._pieces(f"/v1/artifacts/{artifact['id']}/content"):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != artifact["sha256"]:
                raise DamagedDownloadError(f"{artifact['name']}: the download's digest is wrong; try again")
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
        return path

    # Interactive work

    def preview(self, dataset: Json, attack: Json, *, seed: int = 0) -> bytes:
        """A PNG of clean, triggered and residual samples."""
        body = {"dataset": dataset, "attack": attack, "seed": seed}
        return self._call("POST", "/v1/previews", json=body).content

    def predict(
        self,
        id: str,
        *,
        index: int | None = None,
        image: bytes | None = None,
        triggered: bool = False,
        seed: int | None = None,
    ) -> Json:
        """Class and probabilities under every arm's model, for one test image or an uploaded picture."""
        given = {"index": index, "triggered": triggered, "seed": seed}
        body = {key: value for key, value in given.items() if value is not None}
        path = f"{_V1}/{id}/predict"
        if image is None:
            return self._object("POST", path, json=body)
        form = {key: str(value).lower() for key, value in body.items()}
        return self._object("POST", path, data=form, files={"image": ("image", image)})

    # The service itself

    def catalog(self) -> Json:
        """Attacks, defenses, data sets and models, with JSON schema, defaults and sources."""
        return self._object("GET", "/v1/catalog", repeat=True)

    def me(self) -> Json:
        """Whose key this is, its scopes, and how much of the owner's quotas is used."""
        return self._object("GET", "/v1/me", repeat=True)

    def workers(self) -> Json:
        """Workers with device, memory, state and version, and the length of every queue."""
        return self._object("GET", "/v1/workers", repeat=True)

    def ready(self) -> bool:
        """Whether database, broker, object store and workers are all there."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    # How

    def _object(self, method: str, path: str, **request: Any) -> Json:
        return cast(Json, self._call(method, path, **request).json())

    def _call(self, method: str, path: str, *, repeat: bool = False, **request: Any) -> httpx2.Response:
        """Send, and send again while that may help and ``patience`` lasts."""
        end, pause = time.monotonic() + self._patience, 0.1
        while True:
            try:
                response = self._http.request(method, path, **request)
            except httpx2.TransportError as error:
                may_repeat = repeat or isinstance(error, httpx2.ConnectError)  # then nothing was sent
                if not may_repeat or time.monotonic() + pause > end:
                    raise UnreachableError(f"no service at {self.url}: {error}") from error
            except httpx2.InvalidURL as error:
                raise UnreachableError(f"{self.url} is not an address: {error}") from error
            else:
                busy = response.status_code in (429, 503) and repeat
                if not busy or time.monotonic() + pause > end:
                    if response.status_code >= 400:
                        raise error_from(response)
                    return response
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 2.0)

    def _stream(self, id: str, after: int) -> Iterator[Event]:
        headers = {"Last-Event-ID": str(after)}
        with self._http.sse(f"{_V1}/{id}/events", headers=headers, timeout=60.0) as source:
            if source.response.status_code >= 400:
                source.response.read()
                raise error_from(source.response)
            if source.response.status_code == 204:  # ended, and all has been seen
                return
            for sent in source:
                if sent.id and sent.data:
                    data = cast(Json, sent.json())
                    yield {"id": int(sent.id), "type": sent.event, "at": data.pop("at", ""), "data": data}

    def _pieces(self, path: str) -> Iterator[bytes]:
        try:
            with self._http.stream("GET", path) as response:
                if response.status_code >= 400:
                    response.read()
                    raise error_from(response)
                yield from response.iter_bytes(1 << 20)
        except httpx2.TransportError as error:
            raise UnreachableError(f"no service at {self.url}: {error}") from error


def _json(spec: ExperimentSpec | Json) -> Json:
    return spec.model_dump(mode="json") if isinstance(spec, ExperimentSpec) else spec
