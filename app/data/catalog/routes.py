"""GET /v1/catalog."""

from fastapi import APIRouter

from app.core.context import Ctx
from app.data.catalog import service
from app.data.catalog.schemas import Catalog

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/catalog", summary="Attacks, defenses, datasets and models")
def get_catalog(context: Ctx) -> Catalog:
    """Everything that a spec can name, with the default, range, unit and source of each field."""
    return service.catalog(context.settings.datasets)
