"""Webhooks in the typed client: ``client.webhooks``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdlab.base_client import Client

Json = dict[str, Any]
_V1 = "/v1/webhooks"
TEST_SECONDS = 120.0
"""More than the service waits for the outcome of a ping."""


class Webhooks:
    """Requests that the service sends when something ends; see docs/webhooks.md."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create(self, url: str, **fields: Any) -> Json:
        """Make one; ``fields``: name, events. The answer holds its ``secret``, this once."""
        return self._client._object("POST", _V1, json={"url": url, **fields})

    def list(self, **query: Any) -> Iterator[Json]:
        """All, newest first, page by page; ``query``: limit, the size of a page."""
        return self._pages(_V1, "webhooks", query)

    def get(self, id: str) -> Json:
        """Where it sends, what, and whether that arrives."""
        return self._client._object("GET", f"{_V1}/{id}", repeat=True)

    def update(self, id: str, **fields: Any) -> Json:
        """Change what is given: url, name, events, enabled."""
        return self._client._object("PATCH", f"{_V1}/{id}", json=fields, repeat=True)

    def rotate(self, id: str) -> Json:
        """Give it a new ``secret``, which the answer holds; the one before signs too for 24 hours."""
        return self._client._object("POST", f"{_V1}/{id}:rotate")

    def test(self, id: str) -> Json:
        """Send a ping and wait for what comes of it: the delivery, delivered or failed."""
        return self._client._object("POST", f"{_V1}/{id}:test", timeout=TEST_SECONDS)

    def delete(self, id: str) -> None:
        """Remove it, with its log."""
        self._client._call("DELETE", f"{_V1}/{id}")

    def deliveries(self, id: str, **query: Any) -> Iterator[Json]:
        """What was sent to it, newest first, page by page; ``query``: status, limit."""
        return self._pages(f"{_V1}/{id}/deliveries", "deliveries", query)

    def delivery(self, id: str, delivery_id: str) -> Json:
        """One delivery, with what is sent and every attempt."""
        return self._client._object("GET", f"{_V1}/{id}/deliveries/{delivery_id}", repeat=True)

    def redeliver(self, id: str, delivery_id: str) -> Json:
        """Send it again, at once, under the same webhook-id."""
        return self._client._object("POST", f"{_V1}/{id}/deliveries/{delivery_id}:redeliver")

    def _pages(self, path: str, name: str, query: Json) -> Iterator[Json]:
        page = self._client._object("GET", path, params=query, repeat=True)
        while True:
            yield from page[name]
            if not page["next"]:
                return
            page = self._client._object("GET", page["next"], repeat=True)
