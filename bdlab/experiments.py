"""Routes of experiments: submission, lifecycle, events, results, artifacts, and interactive requests."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httpx2

from app.specs.status import TERMINAL
from bdlab.errors import DamagedDownloadError, NotFoundError, UnreachableError
from bdlab.transport import Routes, to_json, without_none
from bdlab.types import Artifact, Event, Experiment, ExperimentItem, Json, LogLine, Results

if TYPE_CHECKING:
    from app.specs.experiment import ExperimentSpec

_PATH = "/v1/experiments"


class ExperimentRoutes(Routes):
    """Part of `bdlab.Client`."""

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._transport.url

    # Lifecycle

    def submit(self, spec: "ExperimentSpec | Json", *, idempotency_key: str | None = None) -> Experiment:
        """Submit an experiment. The key, by default a random one, makes it safe to repeat the call."""
        return cast(Experiment, self._transport.create(_PATH, to_json(spec), idempotency_key))

    def validate(self, spec: "ExperimentSpec | Json") -> Json:
        """Check a spec without running it: its canonical form, hash, and which stages are cached."""
        return self._transport.post(f"{_PATH}:validate", to_json(spec), repeat=True)

    def experiments(self, **query: Any) -> Iterator[ExperimentItem]:
        """Experiments, newest first, page by page; ``query``: the filters of the route (status, tag, ...), and fields.

        By default without the spec and other fields that a list does not show; ``fields="*"`` selects all.
        """
        return cast(Iterator[ExperimentItem], self._transport.pages(_PATH, "experiments", query))

    def experiment(self, id: str) -> Experiment:
        """Status, progress and attempts of an experiment."""
        return cast(Experiment, self._transport.get(f"{_PATH}/{id}"))

    def cancel(self, id: str) -> Experiment:
        """Cancel an experiment; one that is running stops within one batch."""
        return cast(Experiment, self._transport.post(f"{_PATH}/{id}:cancel"))

    def retry(self, id: str) -> Experiment:
        """Requeue an experiment that has ended."""
        return cast(Experiment, self._transport.post(f"{_PATH}/{id}:retry"))

    def delete(self, id: str) -> None:
        """Delete an experiment that is not running, with its files."""
        self._transport.request("DELETE", f"{_PATH}/{id}")

    # Output

    def results(self, id: str) -> Results:
        """Numbers per arm and seed, and aggregated over seeds."""
        return cast(Results, self._transport.get(f"{_PATH}/{id}/results"))

    def results_csv(self, id: str) -> str:
        """The results as CSV, one row per arm and seed."""
        headers = {"Accept": "text/csv"}
        return self._transport.request("GET", f"{_PATH}/{id}/results", headers=headers).text

    def metrics(self, id: str, **query: Any) -> Json:
        """Time series; ``query``: arm, name, seed, points (the most points of a series)."""
        return self._transport.get(f"{_PATH}/{id}/metrics", query)

    def logs(self, id: str, **query: Any) -> list[LogLine]:
        """Lines of the workers' log; ``query``: offset, limit, tail."""
        text = self._transport.request("GET", f"{_PATH}/{id}/logs", params=query).text
        return [json.loads(line) for line in text.split("\n") if line]

    def events_after(self, id: str, after: int = 0) -> list[Event]:
        """The events with ids above ``after``, without waiting for more."""
        headers = {"Accept": "application/json"}
        page = self._transport.get(f"{_PATH}/{id}/events", {"after": after}, headers=headers)
        return cast(list[Event], page["events"])

    def events(self, id: str, after: int = 0) -> Iterator[Event]:
        """Events as they happen, until the experiment has ended. A broken stream is resumed after its last event.

        Polls where server-sent events are not available, such as behind a proxy that changes them.
        """
        is_streaming, failing_since = True, 0.0
        while True:
            try:
                batch = (
                    self._transport.events(f"{_PATH}/{id}/events", after)
                    if is_streaming
                    else self.events_after(id, after)
                )
                for event in batch:
                    after, failing_since = event["id"], 0.0
                    yield event
                if self.experiment(id)["status"] in TERMINAL and not self.events_after(id, after):
                    return
            except httpx2.SSEError:
                is_streaming = False
            except httpx2.TransportError as error:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > self._transport.patience:
                    raise UnreachableError(f"the event stream of {id} failed: {error}") from error
            time.sleep(0.5)

    # Artifacts

    def artifacts(self, id: str, **filters: Any) -> list[Artifact]:
        """The experiment's files; ``filters``: kind, arm, seed."""
        return cast(list[Artifact], self._transport.get(f"{_PATH}/{id}/artifacts", filters)["artifacts"])

    def artifact(self, id: str, name: str) -> Artifact:
        """The experiment's file with this name. Raises NotFoundError."""
        artifacts = {artifact["name"]: artifact for artifact in self.artifacts(id)}
        if name not in artifacts:
            names = ", ".join(artifacts) or "none"
            detail = f"experiment {id} has no file {name!r}; its files: {names}"
            raise NotFoundError(404, "Not Found", detail, [])
        return artifacts[name]

    def content(self, artifact: Artifact) -> bytes:
        """The bytes of a file. Raises DamagedDownloadError if its digest differs."""
        return b"".join(self._verified_chunks(artifact))

    def download(self, artifact: Artifact, path: Path) -> Path:
        """Stream a file to ``path``, which is replaced only once the download is complete.

        Raises DamagedDownloadError if its digest differs.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".download-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(self._verified_chunks(artifact))
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
        return path

    def _verified_chunks(self, artifact: Artifact) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for chunk in self._transport.stream(f"/v1/artifacts/{artifact['id']}/content"):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != artifact["sha256"]:
            raise DamagedDownloadError(f"{artifact['name']}: the SHA-256 digest does not match; try again")

    # Interactive requests

    def preview(self, dataset: Json, attack: Json, *, seed: int = 0) -> bytes:
        """A PNG with clean, triggered and residual samples."""
        body = {"dataset": dataset, "attack": attack, "seed": seed}
        return self._transport.request("POST", "/v1/previews", json=body).content

    def predict(
        self,
        id: str,
        *,
        index: int | None = None,
        image: bytes | None = None,
        triggered: bool = False,
        seed: int | None = None,
    ) -> Json:
        """Class and probabilities by every arm's model, for the test image ``index`` or an encoded ``image``.

        An arm with an input detection also has its verdict, under ``detection``.
        """
        body = without_none(index=index, triggered=triggered, seed=seed)
        path = f"{_PATH}/{id}/predict"
        if image is None:
            return self._transport.post(path, body)
        form = {key: str(value).lower() for key, value in body.items()}
        return self._transport.post(path, data=form, files={"image": ("image", image)})
