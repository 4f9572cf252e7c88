"""GET .../results and GET .../metrics of an experiment."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.routing import as_json
from app.core.table_responses import FormatQuery
from app.results.numbers import service
from app.results.numbers.schemas import Metrics, Results
from app.results.rendering import TABLES, Accept, respond

router = APIRouter(prefix="/v1/experiments/{experiment_id}", tags=["results"])


@router.get(
    "/results",
    summary="Final numbers",
    response_model=Results,
    responses={200: TABLES, **problems(404, 422)},
)
def results(experiment_id: str, context: Ctx, format: FormatQuery = None, accept: Accept = None) -> Response:
    """Numbers of each arm and seed, and means over seeds with 95 % intervals. Arms appear as they finish.

    As a table (CSV, Markdown, LaTeX, parquet) one row for each arm and seed.
    """
    document = service.results(context, experiment_id)
    return respond(document, format, accept, experiment_id, lambda people: service.as_table(document, people))


@router.get("/metrics", summary="Training curves", response_model=Metrics, responses=problems(404, 422))
def metrics(
    experiment_id: str,
    context: Ctx,
    arm: Annotated[str | None, Query(examples=["undefended"])] = None,
    name: Annotated[str | None, Query(examples=["train_loss"])] = None,
    seed: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    points: Annotated[
        int | None, Query(ge=2, le=100_000, description="Maximum number of points of each curve")
    ] = None,
) -> Response:
    """Time series by arm, seed and name, downsampled evenly to `points`; the first and last point are kept."""
    return as_json(service.metrics(context, experiment_id, arm, seed, name, points))
