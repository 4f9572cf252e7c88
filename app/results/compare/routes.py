"""GET /v1/compare."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Response

from app.core import table_responses
from app.core.context import Ctx
from app.core.openapi import problems
from app.core.query_parameters import reject_unknown_parameters
from app.core.routing import as_json
from app.results.compare import service, tables_out
from app.results.compare.schemas import Comparison

router = APIRouter(prefix="/v1", tags=["results"], dependencies=[Depends(reject_unknown_parameters)])


@router.get(
    "/compare",
    summary="Experiments side by side",
    response_model=Comparison,
    responses={
        200: table_responses.document_formats("csv", "markdown", "latex", "parquet"),
        **problems(404, 422),
    },
)
def compare(
    context: Ctx,
    ids: Annotated[
        str,
        Query(
            description="2 to 10 experiments by commas; the others are compared with the first.",
            examples=["019aab3c-5d1e-7c3f-8f00-0123456789ab,019aab3c-5d1e-7c3f-8f00-ba9876543210"],
            max_length=400,
        ),
    ],
    curve: Annotated[
        list[str] | None,
        Query(
            description="Which time series to overlay; may be repeated. Default: clean_accuracy and "
            "attack_success_rate",
            max_length=10,
            examples=[["train_loss"]],
        ),
    ] = None,
    points: Annotated[int, Query(ge=2, le=1000, description="At most so many for each curve")] = 100,
    table: Annotated[
        Literal["numbers", "spec"], Query(description="Which part a format other than JSON shows")
    ] = "numbers",
    format: table_responses.FormatQuery = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """The specs with their differences marked, the numbers of each arm, and curves as means over seeds.

    A difference is the mean over the seeds that both experiments have, each seed with itself, with the 95 % interval
    of that paired difference: much narrower than what two separate intervals suggest.
    """
    found = service.compare(context, ids, curve or ["clean_accuracy", "attack_success_rate"], points)
    kind = table_responses.choose_table_format(format, accept)
    if kind == "json":
        return as_json(found, headers={"Vary": "Accept"})
    for_people = kind in ("markdown", "latex")
    numbers = tables_out.numbers_for_people if for_people else tables_out.numbers
    columns, rows = tables_out.spec(found) if table == "spec" else numbers(found)
    return table_responses.respond(kind, columns, rows, "comparison")
