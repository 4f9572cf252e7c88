"""The main job over HTTP against the whole running service."""

import time
from hashlib import sha256
from typing import Any

import httpx2
import pytest

from tests.conftest import BOTH, Stack
from tests.service.specs import numbers, spec

pytestmark = BOTH
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def finished(stack: Stack) -> Any:
    """A finished experiment."""
    return stack.wait(stack.submit(spec(seed=1, name="main job")))


def test_results_cover_every_arm_with_fractions(stack: Stack, finished: Any) -> None:
    results = stack.results(finished["id"])
    assert [arm["arm"] for arm in results["arms"]] == ["clean", "undefended", "abl"]
    for (arm, _, metric), value in numbers(results).items():
        if metric in ("clean_accuracy", "attack_success_rate", "robust_accuracy") and value is not None:
            assert 0 <= value <= 1, (arm, metric, value)
    assert finished["progress"]["fraction"] == 1
    assert [attempt["outcome"] for attempt in finished["attempts"]] == ["succeeded"]


def test_events_are_complete_and_in_order(stack: Stack, finished: Any) -> None:
    events = stack.get(f"/v1/experiments/{finished['id']}/events", after=0, limit=1000)["events"]
    assert [event["data"]["status"] for event in events if event["type"] == "state"] == [
        "queued",
        "running",
        "succeeded",
    ]
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    assert {"progress", "result", "artifact"} <= {event["type"] for event in events}
    assert events[-1]["type"] == "state"


def test_every_artifact_can_be_downloaded(stack: Stack, finished: Any) -> None:
    artifacts = stack.get(f"/v1/experiments/{finished['id']}/artifacts")["artifacts"]
    names = {artifact["name"] for artifact in artifacts}
    assert {f"seed-1/{arm}/model.safetensors" for arm in ("clean", "undefended", "abl")} <= names
    for artifact in artifacts:
        content = stack.client.get(f"/v1/artifacts/{artifact['id']}/content")
        assert content.status_code == 200
        assert len(content.content) == artifact["size"]
        if artifact["media_type"] == "image/png":
            assert content.content.startswith(PNG)


def test_a_link_points_to_the_bucket_or_to_the_service(stack: Stack, finished: Any) -> None:
    model = stack.get(f"/v1/experiments/{finished['id']}/artifacts", kind="checkpoint")["artifacts"][0]
    link = stack.get(f"/v1/artifacts/{model['id']}/link", seconds=60)
    bucket = stack.environment.get("AWS_ENDPOINT_URL")
    assert link["url"].startswith(f"{bucket}/" if bucket else f"{stack.url}/v1/downloads/")
    content = httpx2.get(link["url"]).content
    assert sha256(content).hexdigest() == link["sha256"] == model["sha256"]
    part = httpx2.get(link["url"], headers={"Range": "bytes=2-9"})
    assert (part.status_code, part.content) == (206, content[2:10])
    url, _, rest = link["url"].partition(model["sha256"])
    assert httpx2.get(url + "0" * 64 + rest if rest else url[:-2]).status_code in (403, 404)
    expiring = stack.get(f"/v1/artifacts/{model['id']}/link", seconds=1)["url"]
    time.sleep(2.1)
    assert httpx2.get(expiring).status_code in (403, 404)


def test_metrics_have_a_point_for_every_epoch(stack: Stack, finished: Any) -> None:
    series = stack.get(f"/v1/experiments/{finished['id']}/metrics", arm="undefended")["series"]
    assert series
    for one in series:
        assert one["steps"] == [1, 2, 3], one["name"]


def test_the_log_names_the_stages(stack: Stack, finished: Any) -> None:
    text = stack.client.get(f"/v1/experiments/{finished['id']}/logs", headers={"Accept": "text/plain"}).text
    assert "seed 1, undefended, victim: started" in text


def test_equal_stages_are_computed_once(stack: Stack, finished: Any) -> None:
    second = stack.wait(stack.submit(spec(seed=1, name="the same spec")))
    assert numbers(stack.results(second["id"])) == numbers(stack.results(finished["id"]))
    text = stack.client.get(f"/v1/experiments/{second['id']}/logs", headers={"Accept": "text/plain"}).text
    assert text.count("taken from the cache") == 6
    assert "started" not in text


def preview(stack: Stack) -> float:
    """Request a preview; returns the seconds it took."""
    start = time.monotonic()
    body = {"dataset": {"name": "digits"}, "attack": {"name": "badnets"}}
    answer = stack.client.post("/v1/previews", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(PNG)
    return time.monotonic() - start


def test_a_preview_is_computed_at_once(stack: Stack) -> None:
    assert preview(stack) < 10


def test_a_prediction_covers_every_arm(stack: Stack, finished: Any) -> None:
    body = {"index": 3, "triggered": True}
    answer = stack.post(f"/v1/experiments/{finished['id']}/predict", body, status=200)
    assert [arm["arm"] for arm in answer["arms"]] == ["clean", "undefended", "abl"]
    for arm in answer["arms"]:
        assert sum(arm["probabilities"]) == pytest.approx(1, abs=1e-4)
        assert arm["probabilities"][arm["class"]] == max(arm["probabilities"])


SEARCHED = {
    "name": "low_frequency",
    "preset": "authors",
    "surrogate_epochs": 1,
    "search_images": 4,
    "search_passes": 1,
}


# A second trigger goes the same way, with an experiment of ten seconds on each of the two services.
@pytest.mark.parametrize(
    "attack",
    [
        {"name": "trojan", "surrogate_epochs": 1, "patch_steps": 2},
        pytest.param(SEARCHED, marks=pytest.mark.long),
    ],
    ids=lambda attack: attack["name"],
)
def test_a_prediction_uses_the_trigger_and_the_detector_that_were_stored(
    stack: Stack, attack: dict[str, Any]
) -> None:
    defense = {"name": "strip_inputs", "overlays": 4}
    body = spec(seed=4, epochs=1, attack=attack, defenses=[defense], reference=False)
    done = stack.wait(stack.submit(body))["id"]
    clean, triggered = (
        stack.post(f"/v1/experiments/{done}/predict", {"index": 3, "triggered": on}, status=200)["arms"]
        for on in (False, True)
    )
    assert clean[0]["probabilities"] != triggered[0]["probabilities"]
    undefended, detected = clean
    assert undefended["probabilities"] == detected["probabilities"]
    assert undefended["detection"] is None
    verdict = detected["detection"]
    assert verdict["flagged"] == (verdict["suspicion"] >= verdict["threshold"])
    assert triggered[1]["detection"]["suspicion"] != verdict["suspicion"]


def test_previews_predictions_and_cancels_do_not_wait_for_training(stack: Stack, finished: Any) -> None:
    running = stack.submit(spec(seed=3, epochs=200, images=1000))
    queued = stack.submit(spec(seed=4))
    stack.eventually(lambda: stack.experiment(running)["progress"].get("epoch"), 60, "no epoch was trained")
    assert preview(stack) < 10
    stack.post(f"/v1/experiments/{finished['id']}/predict", {"index": 0, "triggered": False}, status=200)
    assert stack.experiment(running)["status"] == "running"
    assert stack.post(f"/v1/experiments/{queued}:cancel")["status"] == "canceled"
    start = time.monotonic()
    stack.post(f"/v1/experiments/{running}:cancel")
    stack.wait(running, "canceled", timeout=10)
    assert time.monotonic() - start < 5
    assert stack.experiment(queued)["attempts"] == []


def test_a_non_finite_loss_fails_only_its_arm(stack: Stack) -> None:
    training = {
        "epochs": 12,
        "batch_size": 16,
        "learning_rate": 10,
        "weight_decay": 1,
        "schedule": "constant",
    }
    experiment = stack.wait(stack.submit(spec(seed=5, training=training)))
    arms = {arm["arm"]: arm["seeds"][0] for arm in stack.results(experiment["id"])["arms"]}
    assert "epoch" in arms["undefended"]["error"]
    assert "batch" in arms["undefended"]["error"]
    assert arms["abl"]["clean_accuracy"] > 0
