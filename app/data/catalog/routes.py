"""GET /v1/catalog."""

from fastapi import APIRouter

from app.core.context import Ctx
from app.data.catalog import service
from app.data.catalog.schemas import Catalog

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/catalog", summary="What can be asked for")
def get_catalog(context: Ctx) -> Catalog:
    """Attacks, defenses, data sets and models: for each its fields with default, range, unit and source."""
    return service.catalog(context.settings.datasets)
