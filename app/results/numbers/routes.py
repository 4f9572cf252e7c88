"""GET .../results and GET .../metrics of an experiment."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.routing import preferred_media_type
from app.results.numbers import service
from app.results.numbers.schemas import Metrics, Results

router = APIRouter(prefix="/v1/experiments/{experiment_id}", tags=["results"])
JSON, CSV = "application/json", "text/csv"


@router.get(
    "/results",
    summary="Final numbers",
    response_model=Results,
    responses={200: {"content": {CSV: {"schema": {"type": "string"}}}}, **problems(404)},
)
def results(experiment_id: str, context: Ctx, accept: Annotated[str | None, Header()] = None) -> Response:
    """Numbers of each arm and seed, and means over seeds with 95 % intervals. Arms appear as they finish.

    With `Accept: text/csv` one row for each arm and seed.
    """
    document = service.results(context, experiment_id)
    if preferred_media_type(accept, [JSON, CSV]) == CSV:
        name = f'attachment; filename="{experiment_id}.csv"'
        return Response(service.as_csv(document), media_type=CSV, headers={"Content-Disposition": name})
    return Response(document.model_dump_json(), media_type=JSON)


@router.get("/metrics", summary="Training curves", responses=problems(404, 422))
def metrics(
    experiment_id: str,
    context: Ctx,
    arm: Annotated[str | None, Query(examples=["undefended"])] = None,
    name: Annotated[str | None, Query(examples=["train_loss"])] = None,
    seed: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    points: Annotated[
        int | None, Query(ge=2, le=100_000, description="Maximum number of points of each curve")
    ] = None,
) -> Metrics:
    """Time series by arm, seed and name, downsampled evenly to `points`; the first and last point are kept."""
    return service.metrics(context, experiment_id, arm, seed, name, points)
