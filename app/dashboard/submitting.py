"""The forms that make experiments, sweeps and studies, from the catalog, and the parts fetched when they are chosen."""

from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Context, Ctx
from app.core.errors import NotFoundError
from app.core.validation import shown
from app.dashboard.forms import FormField, fields
from app.dashboard.rendering import PageRoute, page
from app.data.catalog import service
from app.data.catalog.schemas import Catalog, Entry
from app.experiments import service as experiments
from app.specs.defenses.abl import Abl
from app.specs.experiment import ExperimentSpec

router = APIRouter(prefix="/new", route_class=PageRoute, include_in_schema=False)
Kind = Literal["experiment", "sweep", "study"]
Part = Literal["dataset", "model", "attack", "defense", "row"]
LABELS: dict[Part, str] = {"dataset": "Data set", "model": "Model", "attack": "Attack"}
FIRST = ExperimentSpec(defenses=(Abl(),), reference=True).model_dump(mode="json")
"""An experiment that a laptop runs in a minute."""
ROWS = ("badnets", "blend")
"""The attacks of a new study."""
From = Annotated[str | None, Query(alias="from", description="An experiment to start from.")]


class Box(NamedTuple):
    """The fields of one part of a spec, and the entries that may stand there instead."""

    part: str
    label: str
    entries: list[Entry]
    chosen: Entry
    fields: list[FormField]


@router.get("")
def new(request: Request, context: Ctx, start: From = None) -> Response:
    """The form of one experiment; empty, or as another experiment was."""
    return _form(request, context, "experiment", start)


@router.get("/sweep")
def sweep(request: Request, context: Ctx, start: From = None) -> Response:
    """The form of a sweep: an experiment, and the fields that take several values."""
    return _form(request, context, "sweep", start)


@router.get("/study")
def study(request: Request, context: Ctx, start: From = None) -> Response:
    """The form of a study: attacks against defenses."""
    return _form(request, context, "study", start)


@router.get("/{part}")
def chosen(
    request: Request,
    context: Ctx,
    part: Part,
    name: Annotated[str, Query()],
    number: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """The fields of one data set, model, attack or defense; ``number`` tells apart the ids of several of a kind."""
    entry = _named(_entries(service.catalog(context.settings.datasets), part), part, name.partition("/")[0])
    return page(request, "_part.html", part=part, entry=entry, found=fields(entry), number=number)


def _form(request: Request, context: Context, kind: Kind, start: str | None) -> Response:
    known = service.catalog(context.settings.datasets)
    given = experiments.get(context, start).spec if start is not None else FIRST
    names = [part for part in LABELS if (kind, part) != ("study", "attack")]
    attacks = [given["attack"]] if start is not None else [{"name": name} for name in ROWS]
    return page(
        request,
        "new.html",
        kind=kind,
        start=start,
        given=given,
        parts=[*(_box(known, part, given[part]) for part in names), _training(known, given["training"])],
        rows=[_box(known, "row", attack) for attack in attacks] if kind == "study" else [],
        attacks=known.attacks,
        defenses=known.defenses,
        added=[
            _box(known, "defense", defense)
            for defense in given["defenses"]
            if any(entry.name == defense["name"] for entry in known.defenses)
        ],
    )


def _box(known: Catalog, part: Part, given: dict[str, Any]) -> Box:
    """One part as ``given``. An imported data set that is gone gives way to the first of the list."""
    entries = [e for e in _entries(known, part) if e.name != "imported" or getattr(e, "key", None)]
    fitting = (e for e in entries if (e.name, getattr(e, "key", None)) == (given["name"], given.get("key")))
    entry = next(fitting, entries[0])
    return Box(part, LABELS.get(part, entry.name), entries, entry, fields(entry, given))


def _training(known: Catalog, given: dict[str, Any]) -> Box:
    entry = _named(known.training, "training", "training")
    return Box("training", "Training", [], entry, fields(entry, given))


def _entries(known: Catalog, part: Part) -> list[Entry]:
    kinds: dict[Part, list[Entry]] = {
        "dataset": list(known.datasets),
        "model": known.models,
        "attack": known.attacks,
        "row": known.attacks,
        "defense": known.defenses,
    }
    return kinds[part]


def _named(entries: list[Entry], part: str, name: str) -> Entry:
    """Raises NotFoundError."""
    for entry in entries:
        if entry.name == name:
            return entry
    raise NotFoundError(f"there is no {part} {shown(name)}")
