"""Routes about the results of all experiments: search, leaderboard, comparison, reproduction."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from bdlab.transport import Routes, without_none
from bdlab.types import Experiment, Json


class ResultRoutes(Routes):
    """Part of `bdlab.Client`."""

    def search(
        self, *where: str, sort: str | None = None, fields: str | None = None, limit: int = 200
    ) -> Iterator[Json]:
        """Rows of results, one for each experiment and arm, page by page; ``limit`` is the page size.

        ``where``: conditions such as ``"attack.name=sig"`` or ``"results.attack_success_rate<=0.05"``; all must hold.
        """
        query = without_none(where=[*where], sort=sort, fields=fields, limit=limit)
        return self._transport.pages("/v1/results", "rows", query)

    def leaderboard(self, dataset: str, model: str, *, poisoning_rate: float | None = None) -> Json:
        """Attacks against defenses, with published numbers beside the measured ones."""
        query = without_none(dataset=dataset, model=model, poisoning_rate=poisoning_rate)
        return self._transport.get("/v1/leaderboard", query)

    def pareto(self, dataset: str, model: str, *, poisoning_rate: float | None = None) -> Json:
        """For each attack the defenses by clean accuracy and 1 - attack success rate, and its Pareto front."""
        query = without_none(dataset=dataset, model=model, poisoning_rate=poisoning_rate)
        return self._transport.get("/v1/leaderboard/pareto", query)

    def compare(self, ids: Sequence[str], **query: Any) -> Json:
        """2 to 10 experiments side by side; ``query``: curve, points."""
        return self._transport.get("/v1/compare", {"ids": ",".join(ids), **query})

    def table(self, path: str, format: str, **query: Any) -> bytes:
        """The table at ``path`` as csv, markdown, latex or parquet.

        Paths: ``/v1/results``, ``/v1/leaderboard``, ``/v1/leaderboard/pareto``, ``/v1/compare``.
        """
        return self._transport.request("GET", path, params={**query, "format": format}).content

    def manifest(self, id: str) -> Json:
        """What an experiment's results depend on: spec, digests, versions, device, times."""
        return self._transport.get(f"/v1/experiments/{id}/manifest")

    def reproduce(self, id: str, *, idempotency_key: str | None = None) -> Experiment:
        """Run an experiment again without the stage cache. The key makes it safe to repeat the call."""
        return cast(
            Experiment, self._transport.create(f"/v1/experiments/{id}:reproduce", None, idempotency_key)
        )

    def reproduction(self, id: str) -> Json:
        """How the numbers of a reproduction compare with those of the original."""
        return self._transport.get(f"/v1/experiments/{id}/reproduction")
