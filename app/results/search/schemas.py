"""Responses of the search routes."""

from typing import Any

from pydantic import BaseModel, Field


class Rows(BaseModel):
    """One page of rows."""

    rows: list[dict[str, Any]] = Field(
        description="For each experiment and arm the requested fields; null if the row does not have the field. "
        "`results.METRIC` is the mean over seeds; `.low` and `.high` are its 95 % Student-t interval, `.n` the number "
        "of seeds.",
        examples=[
            [
                {
                    "experiment_id": "019aab3c-5d1e-7c3f-8f00-0123456789ab",
                    "arm": "abl",
                    "attack.name": "sig",
                    "defense.name": "abl",
                    "seeds": 3,
                    "results.clean_accuracy": 0.961,
                    "results.attack_success_rate": 0.004,
                }
            ]
        ],
    )
    next: str | None = Field(description="Link to the next page; null on the last page.")


class FieldOut(BaseModel):
    """A field that results can be searched by."""

    name: str
    number: bool = Field(description="Whether the field can be compared with < and >.")


class Fields(BaseModel):
    """All fields except tags, which are `tag.KEY` with any key."""

    fields: list[FieldOut]
