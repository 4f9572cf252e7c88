"""Requests to the service: retries, errors, pages and streams. Every part of the client takes a `Transport`."""

import random
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx2

from bdlab.errors import UnreachableError, WaitTimeoutError, error_from
from bdlab.types import Event, Json

if TYPE_CHECKING:
    from app.specs.base import Spec

ResourceT = TypeVar("ResourceT", bound=Mapping[str, object])
RETRIED_STATUSES = (429, 503)
STREAM_TIMEOUT = 60.0
"""Seconds without any data after which an event stream is considered broken; the service sends keep-alives."""
CHUNK_BYTES = 1 << 20


class Transport:
    """An HTTP connection pool for one service.

    A request is retried with exponential backoff for ``patience`` seconds while the connection fails or the service
    answers 429 or 503, but only if repeating it is safe: a GET, or a request made with ``repeat=True``.

    Every method raises UnreachableError if the service does not answer, and ApiError for a status of 400 or above.
    """

    def __init__(self, url: str, *, api_key: str | None, patience: float, timeout: float) -> None:
        self.url = url.rstrip("/")
        self.patience = patience
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx2.Client(base_url=self.url, timeout=timeout, headers=headers)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(self, method: str, path: str, *, repeat: bool = False, **options: Any) -> httpx2.Response:
        """Send a request; ``options`` are those of `httpx2.Client.request`."""
        repeat = repeat or method == "GET"
        deadline, pause = time.monotonic() + self.patience, 0.1
        while True:
            try:
                response = self._http.request(method, path, **options)
            except httpx2.TransportError as error:
                is_safe = repeat or isinstance(error, httpx2.ConnectError)  # then nothing was sent
                if not is_safe or time.monotonic() + pause > deadline:
                    raise UnreachableError(f"no service at {self.url}: {error}") from error
            except httpx2.InvalidURL as error:
                raise UnreachableError(f"{self.url} is not a valid URL: {error}") from error
            else:
                is_busy = response.status_code in RETRIED_STATUSES and repeat
                if not is_busy or time.monotonic() + pause > deadline:
                    if response.status_code >= 400:
                        raise error_from(response)
                    return response
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 2.0)

    def get(self, path: str, query: Json | None = None, **options: Any) -> Json:
        """The JSON object at ``path``."""
        return cast(Json, self.request("GET", path, params=query, **options).json())

    def post(self, path: str, body: Json | None = None, **options: Any) -> Json:
        """Send ``body`` as JSON; returns the JSON object of the response."""
        return cast(Json, self.request("POST", path, json=body, **options).json())

    def create(self, path: str, body: Json | None, idempotency_key: str | None) -> Json:
        """POST with an Idempotency-Key, by default a random one, so that retries create only one resource."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self.post(path, body, headers=headers, repeat=True)

    def pages(self, path: str, key: str, query: Json) -> Iterator[Json]:
        """The items that the pages of a list hold under ``key``; the next page is requested when it is needed."""
        page = self.get(path, query)
        yield from page[key]
        while page.get("next"):
            page = self.get(page["next"])
            yield from page[key]

    def stream(self, path: str) -> Iterator[bytes]:
        """The content at ``path`` in chunks. Not retried."""
        try:
            with self._http.stream("GET", path) as response:
                if response.status_code >= 400:
                    response.read()
                    raise error_from(response)
                yield from response.iter_bytes(CHUNK_BYTES)
        except httpx2.TransportError as error:
            raise UnreachableError(f"no service at {self.url}: {error}") from error

    def events(self, path: str, after: int) -> Iterator[Event]:
        """Server-sent events with ids above ``after``, until the stream ends.

        Not retried: raises httpx2.TransportError if the connection fails, httpx2.SSEError if the response is not an
        event stream.
        """
        headers = {"Last-Event-ID": str(after)}
        with self._http.sse(path, headers=headers, timeout=STREAM_TIMEOUT) as source:
            if source.response.status_code >= 400:
                source.response.read()
                raise error_from(source.response)
            if (
                source.response.status_code == 204
            ):  # the experiment has ended and ``after`` was its last event
                return
            for event in source:
                if event.id and event.data:
                    data = cast(Json, event.json())
                    yield {"id": int(event.id), "type": event.event, "at": data.pop("at", ""), "data": data}

    def is_ready(self) -> bool:
        """Whether the service answers and is ready. Not retried."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False


class Routes:
    """A group of the service's routes, one method for each."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport


class Resources(Routes):
    """A collection of resources that are listed, read and deleted alike. ``kind`` is its name in paths and pages."""

    def __init__(self, transport: Transport, kind: str) -> None:
        super().__init__(transport)
        self._kind, self._path = kind, f"/v1/{kind}"

    def list(self, **query: Any) -> Iterator[Json]:
        """All of them, newest first, page by page; ``query``: the filters of the route, and limit, the page size."""
        return self._transport.pages(self._path, self._kind, query)

    def get(self, id: str) -> Json:
        """One of them, with its current status."""
        return self._transport.get(f"{self._path}/{id}")

    def delete(self, id: str) -> None:
        """Delete one of them."""
        self._transport.request("DELETE", f"{self._path}/{id}")


def to_json(spec: "Spec | Json") -> Json:
    """A spec as the service takes it."""
    return spec if isinstance(spec, dict) else spec.model_dump(mode="json")


def without_none(**values: Any) -> Json:
    """The arguments that are neither None nor an empty list."""
    return {name: value for name, value in values.items() if value not in (None, [])}


def poll(
    fetch: Callable[[], ResourceT],
    name: str,
    until: Collection[str],
    *,
    timeout: float | None = None,
    on_progress: Callable[[ResourceT], None] | None = None,
) -> ResourceT:
    """Fetch a resource until its status is one of ``until``; raises WaitTimeoutError after ``timeout`` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 0.2
    while True:
        resource = fetch()
        if on_progress:
            on_progress(resource)
        if resource["status"] in until:
            return resource
        if deadline is not None and time.monotonic() + pause > deadline:
            raise WaitTimeoutError(f"{name} is still {resource['status']} after {timeout:g} s")
        time.sleep(pause)
        pause = min(pause * 1.3, 2.0)
