"""The form that makes a spec, from the catalog, and the parts of it that are fetched when they are chosen."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from app.catalog import service
from app.catalog.schemas import Entry
from app.core.context import Context, Ctx
from app.core.errors import NotFoundError
from app.core.validation import shown
from app.dashboard.forms import fields
from app.dashboard.pages import PageRoute, page

router = APIRouter(prefix="/new", route_class=PageRoute, include_in_schema=False)
Part = Literal["dataset", "model", "attack", "defense"]
FIRST: dict[Part, str] = {"dataset": "digits", "model": "small_cnn", "attack": "badnets", "defense": "abl"}


@router.get("")
def new(request: Request, context: Ctx) -> Response:
    """The form, filled with an experiment that a laptop runs in a minute."""
    known = service.catalog(context.settings.datasets)
    listed: dict[Part, list[Entry]] = {
        "dataset": [e for e in known.datasets if e.name != "imported" or e.key],
        "model": list(known.models),
        "attack": list(known.attacks),
    }
    labels: dict[Part, str] = {"dataset": "Data set", "model": "Model", "attack": "Attack"}
    parts = [(part, label, listed[part], _named(listed[part], FIRST[part])) for part, label in labels.items()]
    return page(
        request,
        "new.html",
        parts=[*parts, ("training", "Training", [], _named(known.training, "training"))],
        defenses=known.defenses,
        first=_named(known.defenses, FIRST["defense"]),
        form=fields,
    )


@router.get("/{part}")
def chosen(
    request: Request,
    context: Ctx,
    part: Part,
    name: Annotated[str, Query()],
    number: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """The fields of one data set, model, attack or defence; ``number`` tells apart the ids of several defences."""
    entry = _find(context, part, name)
    return page(request, "_part.html", part=part, entry=entry, found=fields(entry), number=number)


def _find(context: Context, part: Part, name: str) -> Entry:
    """Raises NotFoundError."""
    known = service.catalog(context.settings.datasets)
    entries: dict[Part, list[Entry]] = {
        "dataset": list(known.datasets),
        "model": known.models,
        "attack": known.attacks,
        "defense": known.defenses,
    }
    try:
        return _named(entries[part], name.partition("/")[0])
    except StopIteration:
        raise NotFoundError(f"there is no {part} {shown(name)}") from None


def _named(entries: list[Entry], name: str) -> Entry:
    return next(entry for entry in entries if entry.name == name)
