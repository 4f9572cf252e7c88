"""The phases of an experiment, and what must hold after it ended, whatever failed meanwhile."""

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
"""The arms have results, and figures are drawn."""
PHASES = (*STAGES, REPORT)


def wait_for_phase(stack: Stack, experiment_id: str, arm: str, stage: str) -> None:
    """Wait until an epoch of this stage is done, or for `REPORT` the arm has results, in a running attempt."""
    assert reached(stack, experiment_id, arm, stage), stack.experiment(experiment_id)


def reached(stack: Stack, experiment_id: str, arm: str, stage: str) -> bool:
    """`wait_for_phase` that returns False if the experiment ended before the phase was seen."""

    def position() -> str | None:
        experiment = stack.experiment(experiment_id)
        if (status := experiment["status"]) != "running":
            return "ended" if status in TERMINAL else None
        if (arm, stage) == REPORT:
            done = any(one["arm"] == arm for one in stack.results(experiment_id)["arms"])
        else:
            progress = experiment["progress"]
            done = (progress.get("arm"), progress.get("stage")) == (arm, stage) and progress["epoch"] >= 1
        return "there" if done else None

    return stack.eventually(position, 180, f"{arm}, {stage} was not reached") == "there"


def log(stack: Stack, experiment_id: str) -> str:
    """The experiment's log as text."""
    answer = stack.client.get(f"/v1/experiments/{experiment_id}/logs", headers={"Accept": "text/plain"})
    return answer.text


def states(stack: Stack, experiment_id: str) -> list[str]:
    """Every state that the experiment was in, in order."""
    return [event["data"]["status"] for event in events(stack, experiment_id) if event["type"] == "state"]


def events(stack: Stack, experiment_id: str) -> list[dict[str, Any]]:
    """Every event of the experiment, in order."""
    found: list[dict[str, Any]] = []
    while True:
        after = found[-1]["id"] if found else 0
        page = stack.get(f"/v1/experiments/{experiment_id}/events", after=after, limit=1000)["events"]
        if not page:
            return found
        found += page


def curves(stack: Stack, experiment_id: str) -> dict[tuple[str, str], list[tuple[int, float | None]]]:
    """The points of every metric over the epochs."""
    return {
        (series["arm"], series["name"]): list(zip(series["steps"], series["values"], strict=True))
        for series in stack.get(f"/v1/experiments/{experiment_id}/metrics")["series"]
    }


def record(stack: Stack, experiment_id: str) -> Any:
    """Everything that must not change after the experiment ended."""
    return (
        stack.experiment(experiment_id),
        states(stack, experiment_id),
        numbers(stack.results(experiment_id)),
        curves(stack, experiment_id),
        stack.get(f"/v1/experiments/{experiment_id}/artifacts"),
    )


def assert_completed_once(stack: Stack, experiment_id: str) -> None:
    """Assert that only the last attempt finished, no two attempts overlap, metrics have one point an epoch, and every
    file was announced once; the manifest may be written again, with other times."""
    experiment = stack.experiment(experiment_id)
    assert experiment["status"] == "succeeded", experiment
    statuses = states(stack, experiment_id)
    assert (statuses[0], statuses[-1]) == ("queued", "succeeded")
    assert [statuses.count(status) for status in TERMINAL] == [1, 0, 0]
    attempts = experiment["attempts"]
    assert {attempt["outcome"] for attempt in attempts[:-1]} <= {"lost", "waiting"}
    assert attempts[-1]["outcome"] == "succeeded"
    for before, after in pairwise(attempts):
        assert before["number"] < after["number"]
        assert before["finished_at"] <= after["started_at"]
    for name, points in curves(stack, experiment_id).items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), name
    names = [e["data"]["name"] for e in events(stack, experiment_id) if e["type"] == "artifact"]
    assert {name for name in names if names.count(name) > 1} <= {"manifest.json"}
    for artifact in stack.get(f"/v1/experiments/{experiment_id}/artifacts")["artifacts"]:
        content = stack.client.get(artifact["content"])
        assert (content.status_code, len(content.content)) == (200, artifact["size"])
