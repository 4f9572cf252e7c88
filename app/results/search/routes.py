"""GET /v1/results and GET /v1/results/fields."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.routing import Cursor, following
from app.core.table_formats import columns
from app.core.table_responses import FormatQuery
from app.results.rendering import TABLES, Accept, respond
from app.results.search import service
from app.results.search.fields import all_fields
from app.results.search.schemas import FieldOut, Fields, Rows

router = APIRouter(prefix="/v1", tags=["results"])


@router.get(
    "/results",
    summary="Search results",
    response_model=Rows,
    responses={200: TABLES, **problems(400, 422)},
)
def results(
    request: Request,
    context: Ctx,
    where: Annotated[
        list[str] | None,
        Query(
            description="FIELD OP VALUE, where OP is one of = != < <= > >=. May be repeated; all conditions must hold. "
            "The value `null` stands for a field that the row does not have.",
            examples=[["attack.name=sig", "results.attack_success_rate<=0.05"]],
        ),
    ] = None,
    sort: Annotated[
        str | None,
        Query(
            description="Field to sort by; `-` before it sorts in descending order. Rows without the field are left "
            "out. Default: -created_at",
            examples=["-results.clean_accuracy"],
        ),
    ] = None,
    fields: Annotated[
        str | None,
        Query(
            description="Fields to show, separated by commas; `attack.*` selects all fields of the attack.",
            examples=["experiment_id,arm,attack.*,results.clean_accuracy"],
        ),
    ] = None,
    format: FormatQuery = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: Cursor = None,
    accept: Accept = None,
) -> Response:
    """One row for each experiment and arm that has results, with any field of the spec and any metric.

    Fields are the paths of the spec (`attack.poisoning_rate`, `training.epochs`; `defense.*` is the defense of the
    arm), `tag.KEY`, `results.METRIC`, and `experiment_id`, `name`, `arm`, `status`, `spec_hash`, `seeds`,
    `created_at`, `setting`. `GET /v1/results/fields` lists them. `next` and the `Link` header lead to the next page.
    """
    rows, shown, next_cursor = service.search(context, where or [], sort, fields, cursor, limit)
    link, headers = following(request, next_cursor)
    heads = columns(*(field.name for field in shown))
    return respond(Rows(rows=rows, next=link), format, accept, "results", lambda _: (heads, rows), headers)


@router.get("/results/fields", summary="Fields that results can be searched by", responses=problems(422))
def fields() -> Fields:
    """All fields that `where`, `sort` and `fields` accept, except tags."""
    return Fields(fields=[FieldOut(name=field.name, number=field.number) for field in all_fields().values()])
