"""GET /v1/compare."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.table_responses import FormatQuery
from app.results.compare import service, tables_out
from app.results.compare.schemas import Comparison
from app.results.rendering import TABLES, Accept, respond

router = APIRouter(prefix="/v1", tags=["results"])


@router.get(
    "/compare",
    summary="Compare experiments",
    response_model=Comparison,
    responses={200: TABLES, **problems(404, 422)},
)
def compare(
    context: Ctx,
    ids: Annotated[
        str,
        Query(
            description="2 to 10 experiment ids, separated by commas; the others are compared with the first.",
            examples=["019aab3c-5d1e-7c3f-8f00-0123456789ab,019aab3c-5d1e-7c3f-8f00-ba9876543210"],
            max_length=400,
        ),
    ],
    curve: Annotated[
        list[str] | None,
        Query(
            description="Time series to include; may be repeated. Default: clean_accuracy and attack_success_rate",
            max_length=10,
            examples=[["train_loss"]],
        ),
    ] = None,
    points: Annotated[int, Query(ge=2, le=1000, description="Maximum number of points of each curve")] = 100,
    table: Annotated[
        Literal["numbers", "spec"], Query(description="Part that formats other than JSON contain")
    ] = "numbers",
    format: FormatQuery = None,
    accept: Accept = None,
) -> Response:
    """The fields of the specs side by side, the numbers of each arm, and curves as means over seeds.

    A difference is paired: its mean is over the seeds that both experiments have, and its 95 % interval is that of
    the differences at equal seeds, which is much narrower than the two separate intervals suggest.
    """
    comparison = service.compare(context, ids, curve or ["clean_accuracy", "attack_success_rate"], points)
    return respond(
        comparison,
        format,
        accept,
        "comparison",
        lambda readable: (
            tables_out.spec(comparison)
            if table == "spec"
            else tables_out.numbers(comparison, readable=readable)
        ),
    )
