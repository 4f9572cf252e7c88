"""Query parameters that a route does not know are refused on every route, by name and with what was probably meant."""

import re
from typing import Any

import pytest

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import Service

PATHS: dict[str, dict[str, Any]] = create_app(Settings()).openapi()["paths"]
ROUTES = [(m, path) for path, item in PATHS.items() if path.startswith("/v1/") for m in item]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_an_unknown_parameter_is_refused(service: Service, method: str, path: str) -> None:
    url = re.sub(r"{[^}]*}", "0192f3c0-0000-7000-8000-000000000000", path)
    answer = service.http.request(method, url, params={"zzz": "1"})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["field"], error["value"]) == ("zzz", "1")
    assert error["message"].startswith("unknown parameter; allowed: ")
    assert "422" in PATHS[path][method]["responses"]


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("/v1/experiments?atack=blend", "attack"),
        ("/v1/experiments/1/artifacts?knd=log", "kind"),
        ("/v1/experiments/1/events?aftr=1", "after"),
        ("/v1/experiments/1/logs?ofset=1", "offset"),
    ],
)
def test_a_misspelled_parameter_gets_a_hint(service: Service, url: str, meant: str) -> None:
    answer = service.http.get(url)
    assert answer.status_code == 422
    assert f"did you mean {meant}" in answer.json()["detail"]
