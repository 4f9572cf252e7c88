"""GET /v1/results."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.core import table_responses
from app.core.context import Ctx
from app.core.openapi import problems
from app.core.query_parameters import reject_unknown_parameters
from app.core.routing import Cursor, as_json, following
from app.core.table_formats import columns
from app.results.search import service
from app.results.search.fields import known
from app.results.search.schemas import FieldOut, Fields, Rows

router = APIRouter(prefix="/v1", tags=["results"], dependencies=[Depends(reject_unknown_parameters)])


@router.get(
    "/results",
    summary="Search results",
    response_model=Rows,
    responses={
        200: table_responses.document_formats("csv", "markdown", "latex", "parquet"),
        **problems(400, 422),
    },
)
def results(
    request: Request,
    context: Ctx,
    where: Annotated[
        list[str] | None,
        Query(
            description="FIELD OP VALUE, OP being = != < <= > or >=; may be repeated, all must hold. "
            "`null` stands for a field that the row has not.",
            examples=[["attack.name=sig", "results.attack_success_rate<=0.05"]],
        ),
    ] = None,
    sort: Annotated[
        str | None,
        Query(
            description="A field; with `-` before it the largest first. Rows without the field are left out. "
            "Default: -created_at",
            examples=["-results.clean_accuracy"],
        ),
    ] = None,
    fields: Annotated[
        str | None,
        Query(
            description="Which fields to show, by commas; `attack.*` is all below.",
            examples=["experiment_id,arm,attack.*,results.clean_accuracy"],
        ),
    ] = None,
    format: table_responses.FormatQuery = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: Cursor = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """One row for each experiment and arm that has results: any field of the spec, any metric, by any condition.

    Fields are those of the spec by their path (`attack.poisoning_rate`, `training.epochs`; `defense.*` is the arm's
    own defense), `tag.KEY`, `results.METRIC`, and `experiment_id`, `name`, `arm`, `status`, `spec_hash`, `seeds`,
    `created_at`, `setting`. `GET /v1/results/fields` lists them. Follow `next`, or the `Link` header, for more.
    """
    found = service.search(context, where or [], sort, fields, cursor, limit)
    link, headers = following(request, found.cursor)
    kind = table_responses.choose_table_format(format, accept)
    if kind != "json":
        names = columns(*(field.name for field in found.fields))
        return table_responses.respond(kind, names, found.rows, "results", headers)
    return as_json(Rows(rows=found.rows, next=link), headers={**headers, "Vary": "Accept"})


@router.get("/results/fields", summary="What results can be searched by", responses=problems(422))
def fields() -> Fields:
    """Every field that `where`, `sort` and `fields` know."""
    return Fields(fields=[FieldOut(name=field.name, number=field.number) for field in known().values()])
