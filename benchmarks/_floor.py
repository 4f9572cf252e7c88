"""The least that the service's packages cost: FastAPI on uvicorn, and SQLAlchemy Core where a database is asked.

For `mlflow_comparison`. Like the service's routes, these run in FastAPI's thread pool; they check nothing.
"""

import json
import os
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Header, Response
from sqlalchemy import create_engine, text

app = FastAPI()
engine = create_engine(os.environ["FLOOR_DATABASE"])
STATE = text("SELECT status, spec FROM experiments WHERE id = :id")
POINTS = text(
    "SELECT step, value FROM metric_points WHERE experiment_id = :id AND name = :name ORDER BY step"
)


@app.get("/unchanged")
def unchanged(if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """A 304, without a query."""
    return Response(status_code=304, headers={"ETag": if_none_match or ""})


@app.get("/experiments/{experiment_id}")
def experiment(experiment_id: str) -> Response:
    """The stored spec as it is."""
    with engine.connect() as connection:
        row = connection.execute(STATE, {"id": experiment_id}).one()
    return Response(row.spec, media_type="application/json")


@app.get("/experiments/{experiment_id}/metrics")
def history(experiment_id: str, name: str) -> Response:
    """All points of one curve."""
    with engine.connect() as connection:
        points = connection.execute(POINTS, {"id": experiment_id, "name": name}).all()
    steps, values = zip(*points, strict=True)
    return Response(json.dumps({"steps": steps, "values": values}), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["FLOOR_PORT"]), http="h11", log_level="warning", access_log=False)
