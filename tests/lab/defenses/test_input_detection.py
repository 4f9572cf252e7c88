"""Input detections: what they find, what they must not see, and the verdict on a single image."""

import csv
import dataclasses
import io
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from app.specs.defenses.input_detection import IbdPsc, ScaleUp, SentiNet, StripInputs, Teco
from app.specs.experiment import ExperimentSpec
from app.specs.metrics import OF_INPUTS
from app.specs.model import SmallCnn
from app.specs.stages import PlannedStage
from tests.lab.attacks.helpers import digits
from tests.lab.defenses.cases import BADNETS, NOTHING, SHORT, Spec, defended, number, spec
from tests.lab.memory import DIGITS_ONLY, MemoryRecorder, MemoryStore
from worker.lab import input_scores
from worker.lab.compute import Compute
from worker.lab.contracts import CanceledError
from worker.lab.data.datasets import Split
from worker.lab.defenses import make_detector, sentinet
from worker.lab.defenses.clean_set import CleanSet, draw_clean_set
from worker.lab.defenses.sentinet import fit_curve, grad_cam, most_important, signed_distance
from worker.lab.evaluation import TestSet, input_detection_quality, predict_logits, true_positive_rate_at
from worker.lab.input_scores import score_test_images
from worker.lab.interactive import predict
from worker.lab.networks import Network, build_network
from worker.lab.stages import Progress, StageRun

CPU = Compute(torch.device("cpu"))
SPECS: dict[str, Any] = {
    cls.model_fields["name"].default: cls for cls in (StripInputs, ScaleUp, IbdPsc, Teco, SentiNet)
}


def detector_of(name: str, **fields: Any) -> Any:
    """A detector of an untrained network for digits, which assigns them to several classes."""
    network = build_network(SmallCnn(width=8), digits().facts, 0)
    network.calibrate(digits().train.images)
    with torch.no_grad():
        network.head.bias.sub_(predict_logits(network, digits().train.images[:200], CPU).mean(0))
    return make_detector(SPECS[name](**SHORT[name], **fields), network, CPU, 0)


def some_clean() -> CleanSet:
    return draw_clean_set(digits().train, 10, 40, 0.0, 0)


def table(recorder: MemoryRecorder, arm: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(recorder.files[f"seed-0/{arm}/inputs.csv"].decode())))


def test_a_true_positive_rate_is_at_a_threshold_that_flags_few_enough_others() -> None:
    scores = torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 8.5, 6.5, 0.5, 9])
    positive = torch.arange(14) >= 10
    # One of ten others may be flagged, the one at 9: the threshold is above 8. The positive at 9 ties with it.
    assert true_positive_rate_at(scores, positive, 0.1) == 0.5
    assert true_positive_rate_at(scores, positive, 0.09) == 0.0  # none may be, so none from 9 down
    assert true_positive_rate_at(scores, positive, 0.3) == 0.75
    assert true_positive_rate_at(scores, positive, 1.0) == 1.0
    # Equal scores are flagged together: flagging the positives would flag every other sample too.
    assert true_positive_rate_at(torch.ones(14), positive, 0.5) == 0.0


def test_the_quality_of_an_input_detection() -> None:
    suspicion = torch.tensor([0.1, 0.2, 0.6, 0.3, 0.9, 0.5, 0.2])
    triggered = torch.tensor([False, False, False, False, True, True, True])
    assert input_detection_quality(suspicion, triggered, 0.5) == {
        "input_auroc": pytest.approx((4 + 3 + 1.5) / 12),
        "input_tpr_at_1_percent": pytest.approx(1 / 3),
        "input_tpr_at_5_percent": pytest.approx(1 / 3),
        "input_true_positive_rate": pytest.approx(2 / 3),
        "input_false_positive_rate": 0.25,
    }
    assert input_detection_quality(suspicion[:4], triggered[:4], 0.5) == {"input_false_positive_rate": 0.25}


def a_stage(recorder: MemoryRecorder, store: MemoryStore) -> StageRun:
    planned = PlannedStage("input_detection", "strip_inputs", 0, "stream", 1)
    return StageRun(planned, recorder, store, CPU, Progress(1), 0.0, 0)


def a_test_set() -> TestSet:
    """Twenty clean images, 0 to 19, and ten triggered ones, 20 to 29, made from the images 5 to 14."""
    values = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1)
    labels = torch.zeros(20, dtype=torch.int64)
    origin = torch.arange(5, 15)
    return TestSet(Split(values[:20], labels), Split(values[20:], labels[:10]), labels[:10], origin)


def test_inputs_are_scored_in_a_random_order_and_returned_in_theirs() -> None:
    test, seen = a_test_set(), []

    def score(images: Tensor) -> Tensor:
        seen.append(images.flatten())
        return 2.0 * images.flatten()

    scores = score_test_images(test, score, a_stage(MemoryRecorder(), MemoryStore()))
    assert scores.suspicion.tolist() == [2.0 * i for i in range(30)]
    assert scores.triggered.tolist() == [False] * 20 + [True] * 10
    assert scores.image.tolist() == [*range(20), *range(5, 15)]
    order = torch.cat(seen)
    assert sorted(order.tolist()) == list(range(30))
    assert 2 < int((order[:20] >= 20).sum()) < 10  # triggered ones are among the first
    brought = score_test_images(
        dataclasses.replace(test, origin=None), score, a_stage(MemoryRecorder(), MemoryStore())
    )
    assert brought.image.tolist() == [*range(20), *range(10)]  # where it is not known, their own rows
    one_image = dataclasses.replace(test, one_image=True)
    again = a_stage(MemoryRecorder(), MemoryStore())
    assert not score_test_images(one_image, score, again).triggered.any()


def test_scoring_goes_on_from_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_scores, "CHUNK", 8)
    store, seen = MemoryStore(), []

    def score(images: Tensor) -> Tensor:
        seen.extend(images.flatten().tolist())
        return images.flatten().float()

    def stop() -> None:
        if len(seen) >= 16:
            raise CanceledError("stopped by the test")

    with pytest.raises(CanceledError):
        score_test_images(a_test_set(), score, a_stage(MemoryRecorder(stop), store))
    scores = score_test_images(a_test_set(), score, a_stage(MemoryRecorder(), store))
    assert scores.suspicion.tolist() == list(range(30))
    assert sorted(seen) == list(range(30))  # each once


@pytest.mark.parametrize("name", SPECS)
def test_a_score_depends_on_the_image_only(name: str) -> None:
    detector = detector_of(name)
    state = detector.calibrate(some_clean())
    images = digits().test.images[:12]
    together = detector.score(images, state)
    assert together.unique().numel() > 1
    alone = torch.cat([detector.score(image[None], state) for image in images.flip(0)]).flip(0)
    assert together.tolist() == pytest.approx(alone.tolist(), abs=1e-5)


def gray(*levels: int) -> Tensor:
    """Images of one gray level each."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)


def labeled(images: Tensor, labels: list[int]) -> CleanSet:
    return CleanSet(Split(images, torch.tensor(labels)), Split(images[:0], torch.zeros(0, dtype=torch.int64)))


class Plugin(StripInputs):
    """As a file of a user defines it."""

    code = "digest"

    @classmethod
    def implementation(cls) -> Any:
        return sentinet.Detector


def test_the_code_of_a_plug_in_is_its_implementation() -> None:
    assert isinstance(make_detector(Plugin(), Corner(), CPU, 0), sentinet.Detector)


class Doubting(Network):
    """Classifies by the mean: certain of class 1 for bright images, undecided for others."""

    def __init__(self) -> None:
        super().__init__(1)
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        bright = (x.mean((1, 2, 3)) > 0.5).float() * 100
        return torch.stack([torch.zeros_like(bright), bright], 1)


def test_strip_scores_by_the_mean_entropy_under_its_overlays() -> None:
    """Of a bright image every sum is bright: entropy 0. A black one is as bright as each overlay."""
    clean = labeled(gray(0, 0, 0, 255), [0, 0, 0, 1])
    detector = make_detector(StripInputs(threshold="quantile", false_positive_rate=0.25), Doubting(), CPU, 0)
    state = detector.calibrate(clean)
    assert len(state["overlays"]) == 4  # as many as there are
    undecided = 0.75 * torch.tensor(2.0).log().item()
    assert detector.score(gray(200, 0), state).tolist() == pytest.approx([0, -undecided])
    # Entropies of the clean images: 0 once and `undecided` thrice; a quarter lies at or below the threshold.
    assert state["threshold"].item() == pytest.approx(-undecided * 0.75, abs=1e-6)


def test_scale_up_counts_the_factors_that_leave_the_class() -> None:
    """Of 200, amplified and clipped, all stay bright. 30 is dark; times 3 it still is, times 5, 7, 9 and 11 not."""
    clean, images = labeled(gray(200, 30), [1, 0]), gray(200, 30)
    detector = make_detector(ScaleUp(), Doubting(), CPU, 0)
    state = detector.calibrate(clean)
    assert detector.score(images, state).tolist() == pytest.approx([1.0, 0.2])
    assert state["threshold"].item() == 0.5
    normalized = make_detector(ScaleUp(normalize=True), Doubting(), CPU, 0)
    state = normalized.calibrate(clean)  # mean 0.6, deviation 0.4 times the root of 2
    assert normalized.score(images, state).tolist() == pytest.approx([2**-0.5, -(2**-0.5)])
    state = normalized.calibrate(labeled(gray(200, 30), [0, 0]))  # of the true label: 0 and 0.2
    assert state["mean"].item() == pytest.approx(0.1)


class Chain(Network):
    """Three batch normalization layers that pass the gray level on, against a constant logit of 1."""

    def __init__(self) -> None:
        super().__init__(1)
        self.layers = torch.nn.Sequential(*(torch.nn.BatchNorm2d(1, eps=0) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        level = self.layers(x).mean((1, 2, 3))
        return torch.stack([level, torch.ones_like(level)], 1)


def test_ibd_psc_amplifies_from_the_layers_on_that_make_clean_images_wrong() -> None:
    """A level below 1 is class 1. Once amplified, 0.8 becomes 1.2; 0.6 becomes 0.9 and only then 1.35."""
    network = Chain()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    detector = make_detector(IbdPsc(models=2), network, CPU, 0)
    state = detector.calibrate(labeled(gray(204, 204, 204, 153), [1, 1, 1, 1]))
    assert state["first_count"].item() == 2  # three of four are wrong with one layer: more than 60 %
    images = gray(102, 255)
    # Two and three layers: 0.4 becomes 0.9 and 1.35, 1.0 (of class 0, the first of equals) 2.25 and 3.375.
    expected = [(1.0 - 0.9, 1.0 - 1.35), (2.25 - 1.0, 3.375 - 1.0)]
    means = [torch.tensor(logits).sigmoid().mean().item() for logits in expected]
    assert detector.score(images, state).tolist() == pytest.approx(means, abs=1e-5)
    half = make_detector(IbdPsc(), network, CPU, 0)
    assert half.calibrate(labeled(gray(204, 204, 153, 153), [1] * 4))["first_count"].item() == 3
    assert not half.warnings
    # Models four and five would amplify more layers than there are, and are the model of all three.
    all_layers = {"first_count": torch.tensor(3)}
    assert half.score(images, all_layers).tolist() == pytest.approx(
        [torch.tensor(1.0 - 1.35).sigmoid().item(), torch.tensor(2.375).sigmoid().item()], abs=1e-5
    )
    robust = make_detector(IbdPsc(), network, CPU, 0)
    assert robust.calibrate(labeled(gray(10, 20), [1, 1]))["first_count"].item() == 3
    assert "raise `amplification`" in robust.warnings[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_teco_scores_by_the_deviation_of_the_severities_that_change_the_class() -> None:
    """Of a uniform image contrast changes nothing: that counts as 6. Brightness adds a tenth for each severity."""
    spec = Teco(corruptions=("brightness", "contrast"))
    detector = make_detector(spec, Doubting(), CPU, 0)
    state = detector.calibrate(labeled(gray(100, 10, 10, 10, 10), [0] * 5))
    # 100 is 0.39: bright at severity 2. 10 is 0.04: bright at severity 5. 250 is bright already.
    assert detector.score(gray(100, 10, 250), state).tolist() == pytest.approx([2.0, 0.5, 0.0])
    assert state["threshold"].item() == pytest.approx(
        0.5 + 0.8 * 1.5
    )  # the quantile 0.95 of 0.5, four times, and 2
    assert "images of 32 pixels and more; these have 8x8" in detector.warnings[0]


class Corner(Network):
    """Class 1 where the upper left pixel is bright. Its only map is the image."""

    def __init__(self) -> None:
        super().__init__(1)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        return [x * self.scale]

    def logits_and_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.stage_maps(x)
        corner = maps[-1][:, 0, 0, 0]
        return torch.stack([torch.full_like(corner, 5), 10 * corner], 1), maps

    def forward(self, x: Tensor) -> Tensor:
        return self.logits_and_maps(x)[0]


def spot(row: int, column: int) -> Tensor:
    """A black image with a white square of four pixels."""
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[:, :, row : row + 2, column : column + 2] = 255
    return image


def test_sentinet_pastes_the_region_of_grad_cam_on_clean_images() -> None:
    """The corner decides class 1, so its heat is the map; nothing decides class 0, so nothing is pasted."""
    images = torch.cat([spot(0, 0), spot(6, 6)])
    heat = grad_cam(Corner(), images, CPU)
    # Of 64 positions one has the gradient 10.
    assert heat[0].flatten().tolist() == pytest.approx((images[0].float() / 255 * 10 / 64).flatten().tolist())
    assert heat[1].max() == 0
    assert most_important(heat, 0.15).sum((1, 2, 3)).tolist() == [4, 0]
    ramp = torch.arange(64.0).view(1, 8, 8)
    assert most_important(ramp, 0.15).flatten().nonzero().flatten().tolist() == list(range(56, 64))
    detector = sentinet.Detector(SentiNet(), Corner(), CPU, 0)
    confidence, fooled = detector.paste_regions(images, torch.cat([gray(0), spot(0, 0)]))
    assert fooled.tolist() == [1.0, 0.5]  # of the second image both backgrounds keep their class
    assert confidence[1].item() == pytest.approx(torch.tensor(5.0).sigmoid().item())
    assert confidence[0] < confidence[1]


def test_sentinet_measures_the_distance_from_the_curve_of_clean_images() -> None:
    confidence, fooled = torch.tensor([0.0, 0.001, 0.5, 1.0]), torch.tensor([0.1, 0.3, 0.2, 0.9])
    curve = fit_curve(confidence, fooled, 0.02)  # through the middles of the occupied intervals
    for x, y in ((0.01, 0.3), (0.51, 0.2), (1.01, 0.9)):
        assert (curve[0] + curve[1] * x + curve[2] * x * x).item() == pytest.approx(y)
    diagonal = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    distances = signed_distance(diagonal, torch.tensor([0.0, 1.0, 0.5]), torch.tensor([1.0, 0.0, 0.5]))
    assert distances.tolist() == pytest.approx([2**-0.5, -(2**-0.5), 0.0], abs=1e-3)


@pytest.mark.parametrize(("threshold", "expected"), [("boundary", 0.15), ("quantile", 0.2)])
def test_sentinet_s_threshold(threshold: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    distances = torch.tensor([-0.1, -0.2, 0.0, 0.1, 0.3], dtype=torch.float64)
    monkeypatch.setattr(sentinet, "signed_distance", lambda *_: distances)
    spec = SentiNet.model_validate({"threshold": threshold, "false_positive_rate": 0.125})
    detector = make_detector(spec, Corner(), CPU, 0)
    state = detector.calibrate(labeled(gray(0, 10, 20, 30, 40, 50, 60, 70, 80, 90), [0] * 10))
    assert state["threshold"].item() == pytest.approx(expected)
    assert len(state["backgrounds"]) == 5  # half of the clean set


def verdicts(done: MemoryRecorder, whole: Spec, arm: str, **question: Any) -> dict[str, Any]:
    folder = f"seed-0/{arm}"
    answer = predict(
        ExperimentSpec.model_validate(whole),
        {name: done.files[f"seed-0/{name}/model.safetensors"] for name in ("undefended", arm)},
        data_dir=DIGITS_ONLY,
        image=None,
        seed=0,
        detectors={arm: done.files[f"{folder}/detector.safetensors"]},
        **question,
    )
    without, having = answer["arms"]
    assert "detection" not in without
    verdict: dict[str, Any] = having["detection"]
    return verdict


def test_triggered_inputs_are_found_and_the_model_stays_as_it_is() -> None:
    whole = spec(BADNETS, {"name": "strip_inputs"})
    done = defended(BADNETS, {"name": "strip_inputs"})
    assert number(done, "strip_inputs", "input_auroc") > 0.95
    assert number(done, "strip_inputs", "input_tpr_at_5_percent") > 0.8
    for metric in ("clean_accuracy", "clean_loss", "attack_success_rate", "poisoned_loss", "train_accuracy"):
        assert number(done, "strip_inputs", metric) == number(done, "undefended", metric)
    rows = table(done, "strip_inputs")
    assert list(rows[0]) == ["image", "suspicion", "flagged", "is_triggered"]
    clean = [row for row in rows if row["is_triggered"] == "0"]
    assert sorted(int(row["image"]) for row in clean) == list(range(360))
    flags = sum(row["flagged"] == "1" for row in clean)
    assert flags / 360 == pytest.approx(number(done, "strip_inputs", "input_false_positive_rate"))
    threshold = load(done.files["seed-0/strip_inputs/detector.safetensors"])["threshold"].item()
    for row in (rows[0], rows[-1]):  # the same score when a client asks
        question = {"index": int(row["image"]), "triggered": row["is_triggered"] == "1"}
        verdict = verdicts(done, whole, "strip_inputs", **question)
        assert verdict["suspicion"] == pytest.approx(float(row["suspicion"]), abs=1e-4)
        assert verdict["threshold"] == pytest.approx(threshold, abs=1e-5)
        assert verdict["flagged"] == (row["flagged"] == "1")
    assert rows[0]["flagged"] == "1"
    assert rows[-1]["flagged"] == "0"


@pytest.mark.long  # 70 corruptions of all test images
@pytest.mark.parametrize(("name", "least"), [("teco", 0.8), ("ibd_psc", 0.7)])
def test_other_methods_tell_triggered_digits_from_clean_ones(name: str, least: float) -> None:
    """SCALE-UP and SentiNet do not: digits are black and white, and their last map is too coarse."""
    assert number(defended(BADNETS, {"name": name}), name, "input_auroc") > least


def test_without_an_attack_only_the_false_positive_rate_is_known() -> None:
    done = defended(NOTHING, {"name": "strip_inputs"})
    values = done.results["strip_inputs", 0]
    flags = sum(row["flagged"] == "1" for row in table(done, "strip_inputs"))
    assert values["input_false_positive_rate"] == pytest.approx(flags / 360)
    assert [values[name] for name in OF_INPUTS if name != "input_false_positive_rate"] == [None] * 4
