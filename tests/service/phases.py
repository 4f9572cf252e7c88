"""The phases of an experiment, and what must be true of it whatever broke meanwhile."""

from itertools import pairwise
from typing import Any

from app.specs.status import TERMINAL
from tests.conftest import Stack
from tests.service.specs import numbers

STAGES = (
    ("clean", "victim"),
    ("undefended", "victim"),
    ("abl", "isolation"),
    ("abl", "finetune"),
    ("abl", "unlearning"),
)
REPORT = ("abl", "report")
"""The arms have their numbers, and figures are drawn."""
PHASES = (*STAGES, REPORT)


def wait_for_phase(stack: Stack, experiment_id: str, arm: str, stage: str) -> None:
    """Wait until an epoch of this stage is done, or the arm has its numbers, in an attempt that is running."""
    assert reached(stack, experiment_id, arm, stage), stack.experiment(experiment_id)


def reached(stack: Stack, experiment_id: str, arm: str, stage: str) -> bool:
    """Wait like `wait_for_phase`; False if the experiment has ended, for it may be through before one looks."""

    def there() -> str | None:
        experiment = stack.experiment(experiment_id)
        if (status := experiment["status"]) != "running":
            return "ended" if status in TERMINAL else None
        if (arm, stage) == REPORT:
            done = any(one["arm"] == arm for one in stack.results(experiment_id)["arms"])
        else:
            progress = experiment["progress"]
            done = (progress.get("arm"), progress.get("stage")) == (arm, stage) and progress["epoch"] >= 1
        return "there" if done else None

    return stack.eventually(there, 180, f"{arm}, {stage} was not reached") == "there"


def log(stack: Stack, experiment_id: str) -> str:
    """The experiment's log as text."""
    answer = stack.client.get(f"/v1/experiments/{experiment_id}/logs", headers={"Accept": "text/plain"})
    return answer.text


def states(stack: Stack, experiment_id: str) -> list[str]:
    """Every state that the experiment was in, in order."""
    page = stack.get(f"/v1/experiments/{experiment_id}/events", after=0, limit=1000)
    return [event["data"]["status"] for event in page["events"] if event["type"] == "state"]


def curves(stack: Stack, experiment_id: str) -> dict[tuple[str, str], list[tuple[int, float | None]]]:
    """The points of every metric over the epochs."""
    return {
        (series["arm"], series["name"]): list(zip(series["steps"], series["values"], strict=True))
        for series in stack.get(f"/v1/experiments/{experiment_id}/metrics")["series"]
    }


def record(stack: Stack, experiment_id: str) -> Any:
    """All that must not change once it has ended."""
    return (
        stack.experiment(experiment_id),
        states(stack, experiment_id),
        numbers(stack.results(experiment_id)),
        curves(stack, experiment_id),
        stack.get(f"/v1/experiments/{experiment_id}/artifacts"),
    )


def completed_once(stack: Stack, experiment_id: str) -> None:
    """It came to its end in one attempt, which was the last; no two attempts held it at the same time; and of every
    epoch there is one point."""
    experiment = stack.experiment(experiment_id)
    assert experiment["status"] == "succeeded", experiment
    told = states(stack, experiment_id)
    assert (told[0], told[-1]) == ("queued", "succeeded")
    assert [told.count(status) for status in TERMINAL] == [1, 0, 0]
    tries = experiment["attempts"]
    assert {tried["outcome"] for tried in tries[:-1]} <= {"lost", "waiting"}
    assert tries[-1]["outcome"] == "succeeded"
    for before, after in pairwise(tries):
        assert before["number"] < after["number"]
        assert before["finished_at"] <= after["started_at"]
    for name, points in curves(stack, experiment_id).items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), name
    for artifact in stack.get(f"/v1/experiments/{experiment_id}/artifacts")["artifacts"]:
        content = stack.client.get(artifact["content"])
        assert (content.status_code, len(content.content)) == (200, artifact["size"])
