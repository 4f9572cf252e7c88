"""What a search for results gives."""

from typing import Any

from pydantic import BaseModel, Field


class Rows(BaseModel):
    """One page of rows."""

    rows: list[dict[str, Any]] = Field(
        description="For each experiment and arm the fields asked for; null where the row has no such field. "
        "`results.METRIC` is the mean over seeds, with `.low`, `.high` (95 % Student-t interval) and `.n` beside it.",
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
    next: str | None = Field(description="Link to the next page; null on the last.")


class FieldOut(BaseModel):
    """A field that results can be searched by."""

    name: str
    number: bool = Field(description="Whether it can be compared with < and >.")


class Fields(BaseModel):
    """Every field but tags, which are free: `tag.KEY`."""

    fields: list[FieldOut]
