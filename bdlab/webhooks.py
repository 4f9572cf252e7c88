"""``client.webhooks``: requests that the service sends when something ends; see docs/webhooks.md."""

from collections.abc import Iterator
from typing import Any

from bdlab.transport import Resources
from bdlab.types import Json

TEST_TIMEOUT = 120.0
"""Seconds; longer than the service waits for the outcome of a ping."""


class Webhooks(Resources):
    """Webhooks and their deliveries. `delete` also deletes the delivery log."""

    def create(self, url: str, **fields: Any) -> Json:
        """Create a webhook; ``fields``: name, events. Only this response contains its ``secret``."""
        return self._transport.post(self._path, {"url": url, **fields})

    def update(self, id: str, **fields: Any) -> Json:
        """Change some of url, name, events, enabled."""
        response = self._transport.request("PATCH", f"{self._path}/{id}", json=fields, repeat=True)
        changed: Json = response.json()
        return changed

    def rotate(self, id: str) -> Json:
        """Replace the secret. Only this response contains the new one; the old one also signs for 24 hours."""
        return self._transport.post(f"{self._path}/{id}:rotate")

    def test(self, id: str) -> Json:
        """Send a ping and wait for its outcome: the delivery, delivered or failed."""
        return self._transport.post(f"{self._path}/{id}:test", timeout=TEST_TIMEOUT)

    def deliveries(self, id: str, **query: Any) -> Iterator[Json]:
        """Its deliveries, newest first, page by page; ``query``: status, limit."""
        return self._transport.pages(f"{self._path}/{id}/deliveries", "deliveries", query)

    def delivery(self, id: str, delivery_id: str) -> Json:
        """One delivery, with its body and every attempt."""
        return self._transport.get(f"{self._path}/{id}/deliveries/{delivery_id}")

    def redeliver(self, id: str, delivery_id: str) -> Json:
        """Send a delivery again immediately, with the same webhook-id."""
        return self._transport.post(f"{self._path}/{id}/deliveries/{delivery_id}:redeliver")
