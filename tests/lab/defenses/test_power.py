"""The decoys of `abl_plus`: what they change, and when they count as noticed."""

import pytest
import torch

from worker.lab.data.datasets import Split
from worker.lab.defenses.power import ALPHA, DECOYS, is_noticed, make_trigger, plant_decoys

SHAPE = torch.Size((3, 20, 20))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_decoys_are_relabeled_images_of_classes_without_decoys() -> None:
    labels = torch.arange(1200) % 10
    images = torch.randint(1, 255, (1200, *SHAPE), generator=generator(), dtype=torch.uint8)
    split = Split(images.clone(), labels.clone())
    changed, planted = plant_decoys(split, [3], seed=0)
    assert torch.equal(split.images, images)  # type: ignore[arg-type]
    assert torch.equal(split.labels, labels)
    assert len(planted) == 5  # half of the classes; there is a sixth decoy
    assert 3 not in planted
    every = torch.stack(list(planted.values()))
    assert every.sum(0).max() == 1
    touched = (changed.images != images).flatten(1).any(1)  # type: ignore[union-attr]
    assert torch.equal(touched, every.any(0))
    for (label, decoys), (_, share) in zip(planted.items(), DECOYS, strict=False):
        assert (changed.labels[decoys] == label).all()
        members = int((changed.labels == label).sum())
        assert int(decoys.sum()) == pytest.approx(share * members, abs=1)
        assert not set(labels[decoys].tolist()) & {3, *planted}
    assert torch.equal(changed.labels[~every.any(0)], labels[~every.any(0)])
    again, other = (plant_decoys(split, [3], seed)[1] for seed in (0, 1))
    assert list(again) == list(planted)
    assert list(other) != list(planted)


def test_two_classes_take_no_decoy() -> None:
    split = Split(torch.zeros((200, *SHAPE), dtype=torch.uint8), torch.arange(200) % 2)
    assert plant_decoys(split, [], seed=0)[1] == {}


def test_a_patch_changes_only_its_place() -> None:
    images = torch.full((4, *SHAPE), 128, dtype=torch.uint8)
    stamped = make_trigger("patch", SHAPE, generator())(images)
    changed = (stamped != images).any(1)
    assert torch.equal(changed[0], changed[3])
    assert 1 <= int(changed[0].sum()) <= 4  # two by two pixels
    assert (images == 128).all()


def test_a_blend_moves_each_pixel_by_its_opacity() -> None:
    images = torch.zeros((2, *SHAPE), dtype=torch.uint8)
    blended = make_trigger("blend", SHAPE, generator())(images)
    assert torch.equal(blended[0], blended[1])
    assert int(blended.max()) <= round(ALPHA * 255)
    assert blended.float().mean() == pytest.approx(ALPHA * 127.5, rel=0.1)


def test_a_warp_moves_content_and_no_level() -> None:
    flat = torch.full((1, *SHAPE), 77, dtype=torch.uint8)
    assert (make_trigger("warp", SHAPE, generator())(flat) == 77).all()
    ramp = torch.arange(20, dtype=torch.uint8)[None, None, None].expand(1, *SHAPE) * 10
    shift = make_trigger("warp", SHAPE, generator())(ramp).float() - ramp.float()
    assert 0 < shift.abs().max() <= 16  # a pixel and a half, ten levels each
    assert shift.abs().mean() > 1


@pytest.mark.parametrize(
    ("side", "noticed"),
    [
        ([0, 1, 2, 3], True),
        ([0, 1], True),
        ([0, 1, 4, 5], True),
        ([0], False),
        ([0, 1, 4, 5, 6], False),
        ([], False),
    ],
)
def test_a_decoy_is_noticed_if_a_side_is_mostly_decoy_and_has_most_of_it(
    side: list[int], noticed: bool
) -> None:
    decoys = torch.arange(10) < 4
    flagged = torch.zeros(10, dtype=torch.bool)
    flagged[side] = True
    nothing = torch.zeros(10, dtype=torch.bool)
    assert is_noticed(decoys, (nothing, flagged)) is noticed
    assert is_noticed(decoys, ()) is False
