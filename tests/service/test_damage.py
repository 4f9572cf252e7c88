"""Damaged files and stages of a finished experiment: a prediction says so, and a retry writes them again."""

from pathlib import Path

from tests.conftest import Stack
from tests.service.specs import spec

SPEC = spec(seed=77, epochs=1, images=100, defenses=[], reference=False)


def flip_two_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in (len(content) - 9, len(content) - 5):  # in the last weights
        content[place] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_model_predicts_nothing_and_a_retry_mends_it(stack: Stack) -> None:
    experiment_id = stack.submit(SPEC)
    stack.wait(experiment_id)
    here = f"/v1/experiments/{experiment_id}"
    stored = stack.home / "objects"

    def file() -> tuple[str, str]:
        """The link to the undefended model, and its digest."""
        (model,) = stack.get(f"{here}/artifacts", kind="checkpoint", arm="undefended")["artifacts"]
        return model["content"], model["sha256"]

    content, sha256 = file()
    sound, expected = stack.client.get(content).content, stack.post(f"{here}/predict", {}, status=200)
    validated = stack.post("/v1/experiments:validate", SPEC, status=200)
    (stage,) = [s["key"] for s in validated["stages"] if (s["arm"], s["kind"]) == ("undefended", "victim")]
    model_path = stored / "sha256" / sha256[:2] / sha256
    flip_two_bytes(model_path)
    flip_two_bytes(stored / "stages" / f"{stage}.safetensors")
    damage = stack.post(f"{here}/predict", {}, status=500)
    assert damage["type"] == "urn:backdoor-lab:problem:damaged"
    assert sha256 in damage["detail"]
    assert stack.client.get(content).status_code == 500
    events = stack.get(f"{here}/events", after=0, limit=1000)["events"]

    stack.post(f"{here}:retry")
    stack.wait(experiment_id)
    assert model_path.read_bytes() == sound
    assert file() == (content, sha256)
    assert stack.client.get(content).content == sound
    assert stack.post(f"{here}/predict", {}, status=200) == expected
    later = stack.get(f"{here}/events", after=events[-1]["id"], limit=1000)["events"]
    renamed = [event["data"]["name"] for event in later if event["type"] == "artifact"]
    # Equal work gives equal bytes, but for the manifest's times and the seconds of the stage that was computed again.
    assert set(renamed) <= {"manifest.json", "results.json"}
