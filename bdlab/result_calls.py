"""What the typed client can ask of the results of all experiments."""

import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from bdlab.types import Experiment

Json = dict[str, Any]


class ResultsCalls:
    """Part of `bdlab.base_client.Client`, which sends the requests."""

    if TYPE_CHECKING:

        def _call(self, method: str, path: str, *, repeat: bool = False, **request: Any) -> Any: ...

    def search(
        self, *where: str, sort: str | None = None, fields: str | None = None, limit: int = 200
    ) -> Iterator[Json]:
        """Rows of results, one for each experiment and arm, page by page (``limit`` is the size of a page).

        ``where``: conditions such as ``"attack.name=sig"`` or ``"results.attack_success_rate<=0.05"``; all must hold.
        """
        query = {"where": list(where), "sort": sort, "fields": fields, "limit": limit}
        page = self._get("/v1/results", {name: value for name, value in query.items() if value is not None})
        while True:
            yield from page["rows"]
            if not page.get("next"):
                return
            page = self._get(page["next"])

    def leaderboard(self, dataset: str, model: str, *, poisoning_rate: float | None = None) -> Json:
        """Attacks against defenses, with published numbers beside ours."""
        return self._get("/v1/leaderboard", _board(dataset, model, poisoning_rate))

    def pareto(self, dataset: str, model: str, *, poisoning_rate: float | None = None) -> Json:
        """For each attack the defenses by clean accuracy and 1 - attack success, and which are on the front."""
        return self._get("/v1/leaderboard/pareto", _board(dataset, model, poisoning_rate))

    def compare(self, ids: Sequence[str], **query: Any) -> Json:
        """2 to 10 experiments side by side; ``query``: curve, points."""
        return self._get("/v1/compare", {"ids": ",".join(ids), **query})

    def table(self, path: str, format: str, **query: Any) -> bytes:
        """A route that gives a table (`/v1/results`, `/v1/leaderboard`, its `/pareto`, `/v1/compare`) as csv, markdown,
        latex or parquet."""
        answer = self._call("GET", path, params={**query, "format": format}, repeat=True)
        return cast(bytes, answer.content)

    def manifest(self, id: str) -> Json:
        """What made an experiment's results: spec, digests, versions, device, times."""
        return self._get(f"/v1/experiments/{id}/manifest")

    def reproduce(self, id: str, *, idempotency_key: str | None = None) -> Experiment:
        """Run an experiment afresh, without the stage cache. The key makes repeating the call safe."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        answer = self._call("POST", f"/v1/experiments/{id}:reproduce", headers=headers, repeat=True)
        return cast(Experiment, answer.json())

    def reproduction(self, id: str) -> Json:
        """How the numbers of a reproduction compare with the original's."""
        return self._get(f"/v1/experiments/{id}/reproduction")

    def _get(self, path: str, query: Json | None = None) -> Json:
        return cast(Json, self._call("GET", path, params=query, repeat=True).json())


def _board(dataset: str, model: str, poisoning_rate: float | None) -> Json:
    query: Json = {"dataset": dataset, "model": model}
    return query if poisoning_rate is None else {**query, "poisoning_rate": poisoning_rate}
