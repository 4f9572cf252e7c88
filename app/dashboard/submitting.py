"""The forms that submit experiments, sweeps and studies, and the parts of these forms that scripts fetch."""

from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Context, Ctx
from app.core.errors import NotFoundError
from app.core.validation import shown
from app.dashboard.forms import FormField, form_fields
from app.dashboard.rendering import PageRoute, page
from app.data.catalog import service
from app.data.catalog.schemas import Catalog, Entry
from app.experiments import service as experiments
from app.specs.defenses.abl import Abl
from app.specs.experiment import ExperimentSpec

router = APIRouter(prefix="/new", route_class=PageRoute, include_in_schema=False)
Kind = Literal["experiment", "sweep", "study"]
Part = Literal["dataset", "model", "attack", "defense", "row"]
LABELS: dict[Part, str] = {"dataset": "Dataset", "model": "Model", "attack": "Attack"}
DEFENSE_KINDS: dict[str, str] = {
    "training": "Training",
    "repair": "Repair of the victim",
    "detection": "Detection of poisoned training images",
    "input_detection": "Detection of triggered inputs",
}
DEFAULT_SPEC = ExperimentSpec(defenses=(Abl(),), reference=True).model_dump(mode="json")
"""An experiment that a laptop runs in a minute."""
STUDY_ATTACKS = ("badnets", "blend")
"""The attacks of a new study."""
From = Annotated[str | None, Query(alias="from", description="An experiment to start from.")]


class FormPart(NamedTuple):
    """The fields of one part of a spec: of its selected catalog entry, which is one of ``entries``."""

    name: str
    label: str
    entries: list[Entry]
    selected: Entry
    fields: list[FormField]


@router.get("")
def new(request: Request, context: Ctx, source_id: From = None) -> Response:
    """The form of one experiment, empty or filled from another experiment."""
    return _form(request, context, "experiment", source_id)


@router.get("/sweep")
def sweep(request: Request, context: Ctx, source_id: From = None) -> Response:
    """The form of a sweep: an experiment, and the fields that vary."""
    return _form(request, context, "sweep", source_id)


@router.get("/study")
def study(request: Request, context: Ctx, source_id: From = None) -> Response:
    """The form of a study: attacks x defenses."""
    return _form(request, context, "study", source_id)


@router.get("/{part}")
def form_part(
    request: Request,
    context: Ctx,
    part: Part,
    name: Annotated[str, Query()],
    number: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """The fields of one dataset, model, attack or defense. ``number`` makes the ids of several of a kind unique."""
    entries = _entries(service.catalog(context.settings.datasets), part)
    entry = _find_entry(entries, part, name.partition("/")[0])
    return page(request, "_part.html", part=part, entry=entry, fields=form_fields(entry), number=number)


def _form(request: Request, context: Context, kind: Kind, source_id: str | None) -> Response:
    catalog = service.catalog(context.settings.datasets)
    spec = experiments.get(context, source_id).spec if source_id is not None else DEFAULT_SPEC
    names = [part for part in LABELS if (kind, part) != ("study", "attack")]
    attacks = [spec["attack"]] if source_id is not None else [{"name": name} for name in STUDY_ATTACKS]
    defense_names = {entry.name for entry in catalog.defenses}
    return page(
        request,
        "new.html",
        kind=kind,
        source_id=source_id,
        spec=spec,
        parts=[
            *(_form_part(catalog, name, spec[name]) for name in names),
            _training_part(catalog, spec["training"]),
        ],
        selected_attacks=[_form_part(catalog, "row", attack) for attack in attacks]
        if kind == "study"
        else [],
        attacks=[("", catalog.attacks)],
        defenses=[
            (label, [entry for entry in catalog.defenses if entry.kind == kind_of_defense])
            for kind_of_defense, label in DEFENSE_KINDS.items()
        ],
        selected_defenses=[
            _form_part(catalog, "defense", defense)
            for defense in spec["defenses"]
            if defense["name"] in defense_names
        ],
    )


def _form_part(catalog: Catalog, name: Part, values: dict[str, Any]) -> FormPart:
    """The part with these values. The first entry replaces an imported dataset or a plug-in that is gone."""
    entries = [e for e in _entries(catalog, name) if e.name != "imported" or getattr(e, "key", None)]
    key = (values["name"], values.get("key"))
    entry = next((e for e in entries if (e.name, getattr(e, "key", None)) == key), entries[0])
    return FormPart(name, LABELS.get(name, entry.name), entries, entry, form_fields(entry, values))


def _training_part(catalog: Catalog, values: dict[str, Any]) -> FormPart:
    entry = _find_entry(catalog.training, "training", "training")
    return FormPart("training", "Training", [], entry, form_fields(entry, values))


def _entries(catalog: Catalog, part: Part) -> list[Entry]:
    kinds: dict[Part, list[Entry]] = {
        "dataset": list(catalog.datasets),
        "model": [*catalog.models],
        "attack": catalog.attacks,
        "row": catalog.attacks,
        "defense": [*catalog.defenses],
    }
    return kinds[part]


def _find_entry(entries: list[Entry], part: str, name: str) -> Entry:
    """Raises NotFoundError."""
    for entry in entries:
        if entry.name == name:
            return entry
    raise NotFoundError(f"there is no {part} {shown(name)}")
