"""Every trigger against pixels computed by hand."""

import base64
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from app.specs.attack import Refool
from tests.lab.attacks.helpers import CHEAP, attack, digits, experiment, facts, image, poisoned, state_of
from worker.lab.attacks import apply_trigger, make_attack
from worker.lab.attacks.poisoning import choose_poisoned
from worker.lab.data.datasets import Split

ZERO = image([[0] * 4] * 4)
FULL = image([[255] * 4] * 4)
W, B = 255, 0


def test_badnets_checkerboard_replaces_the_bottom_right_corner():
    made = attack(facts(), name="badnets", size=3)
    assert made.trigger({})(image([[7] * 4] * 4)).tolist() == [
        [[[7, 7, 7, 7], [7, B, B, W], [7, B, W, B], [7, W, B, W]]]
    ]


@pytest.mark.parametrize(
    ("position", "margin", "row", "column"),
    [
        ("top_left", 0, 0, 0),
        ("top_left", 1, 1, 1),
        ("top_right", 1, 1, 2),
        ("bottom_left", 1, 2, 1),
        ("center", 0, 1, 1),
    ],
)
def test_badnets_patch_is_at_its_position(position, margin, row, column):
    made = attack(facts(), name="badnets", size=1, position=position, margin=margin)
    assert made.trigger({})(ZERO)[0, 0].nonzero().tolist() == [[row, column]]


def test_badnets_opacity_blends_and_rounds():
    made = attack(facts(), name="badnets", size=1, pattern="white", opacity=0.25)
    assert made.trigger({})(image([[100] * 4] * 4))[0, 0, 3, 3] == round(0.75 * 100 + 0.25 * 255)


def test_a_color_image_is_stamped_once_in_all_channels():
    made = attack(facts(channels=3), name="badnets", size=2, opacity=0.5)
    triggered = made.trigger({})(torch.zeros((1, 3, 4, 4), dtype=torch.uint8))
    assert triggered[0, :, 2:, 2:].tolist() == [[[128, 0], [0, 128]]] * 3  # twice would be 192
    assert triggered.sum() == 3 * 2 * 128


def test_all_to_all_targets_the_next_class_and_for_the_last_the_first():
    made = attack(facts(), name="badnets", label_mode="all_to_all")
    assert made.target(torch.arange(10)).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_single_pixel_sets_one_pixel_in_every_channel():
    made = attack(facts(channels=3), name="single_pixel", row=-1, column=1, value=200)
    triggered = made.trigger({})(torch.full((2, 3, 4, 4), 9, dtype=torch.uint8))
    assert triggered[:, :, 3, 1].tolist() == [[200] * 3] * 2
    assert (triggered != 9).sum() == 6


def test_single_pixel_is_in_the_center_unless_a_place_is_given():
    triggered = attack(facts(height=6), name="single_pixel").trigger({})(
        torch.zeros((1, 1, 6, 4), dtype=torch.uint8)
    )
    assert triggered[0, 0].nonzero().tolist() == [[3, 2]]
    assert triggered.max() == 255


def test_single_pixel_of_the_authors_has_a_color():
    made = attack(facts(channels=3, height=32, width=32), name="single_pixel", preset="authors")
    triggered = made.trigger({})(torch.full((2, 3, 32, 32), 9, dtype=torch.uint8))
    assert triggered[:, :, 11, 16].tolist() == [[101, 0, 25]] * 2
    assert (triggered != 9).sum() == 6


def test_badnets_of_the_benchmark_is_a_white_square():
    made = attack(facts(), name="badnets", preset="benchmark")
    assert made.trigger({})(ZERO)[0, 0].tolist() == [[B] * 4, *[[B, W, W, W]] * 3]


def test_sig_adds_the_sinusoid_counted_from_column_one_and_clips():
    made = attack(facts(width=8, height=2), name="sig", amplitude=30, frequency=1)
    wave = [30 * math.sin(2 * math.pi * j / 8) for j in range(1, 9)]
    assert wave[1] == pytest.approx(30)
    for level in (0, 100, 250):
        triggered = made.trigger({})(torch.full((1, 1, 2, 8), level, dtype=torch.uint8))
        expected = [min(255, max(0, round(level + v))) for v in wave]
        assert triggered[0, 0].tolist() == [expected, expected]


def test_blend_weighs_image_and_noise():
    data = digits()
    spec = experiment(name="blend", alpha=0.2)
    state = state_of(spec, data)
    made = make_attack(spec.attack, data.facts)
    assert made is not None
    before = data.test.images[:5]
    expected = (0.8 * before.double() + 0.2 * state["pattern"].double()).round()
    after = made.trigger(state)(before).double()
    assert (after - expected).abs().max() <= 1  # halves may round either way in single precision
    assert (after - expected).abs().mean() < 0.01


def test_blend_accepts_a_training_image_or_an_upload_as_pattern():
    data = digits()
    of_image = state_of(experiment(name="blend", pattern="image", pattern_index=7), data)
    assert torch.equal(of_image["pattern"], data.train.images[7])
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    uploaded = state_of(experiment(name="blend", pattern="png", pattern_png=text), data)
    assert uploaded["pattern"].tolist() == [pixels.tolist()]


def test_an_uploaded_smooth_pattern_is_scaled_to_the_amplitude():
    file = io.BytesIO()
    Image.fromarray(np.arange(10, 74, dtype=np.uint8).reshape(8, 8)).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    spec = experiment(name="low_frequency", pattern="png", pattern_png=text, amplitude=126)
    assert state_of(spec, digits())["pattern"].flatten().tolist() == [2.0 * i for i in range(64)]


def test_low_frequency_pattern_has_its_amplitude_and_only_low_waves():
    made = attack(facts(height=8, width=8), name="low_frequency", amplitude=20, waves=3)
    pattern = made.mixture().double()[0]
    assert pattern.min() == 0  # the published range is not negative
    assert pattern.max() == pytest.approx(20)
    place = torch.arange(8, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi / 8 * torch.arange(8, dtype=torch.float64)[:, None] * place)
    coefficients = waves @ pattern @ waves.T
    low = torch.zeros((8, 8), dtype=torch.bool)
    low[:3, :3] = True
    assert coefficients[~low].abs().max() < 1e-4
    assert coefficients[low].abs().max() > 10
    gray = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    assert made.trigger({"pattern": made.mixture()})(gray)[0, 0].tolist() == (100 + pattern).round().tolist()


def test_adaptive_patch_adds_its_patches_one_after_another():
    patches = [
        {"pattern": "white", "size": 0.5, "opacity": 0.5, "positions": ["top_left", "bottom_right"]},
        {"size": 0.25, "margin": 0.25, "opacity": 0.2},
    ]
    triggered = attack(facts(), name="adaptive_patch", test_patches=patches).trigger({})(
        image([[100] * 4] * 4)
    )
    once = round(0.5 * 100 + 0.5 * 255)
    both = round(177.5 + 0.2 * (255 - 177.5))  # rounded once
    assert triggered[0, 0].tolist() == [
        [once, once, 100, 100],
        [once, once, 100, 100],
        [100, 100, both, once],
        [100, 100, once, once],
    ]


def test_adaptive_patch_of_the_toolbox_has_its_sizes_on_32_pixels():
    made = attack(facts(channels=3, height=32, width=32), name="adaptive_patch")
    places = [made.layer(patch)[1][0].nonzero() for patch in made.spec.patches]
    extents = [(rows.amin(0).tolist(), rows.amax(0).tolist(), len(rows)) for rows in places]
    assert extents == [
        ([27, 27], [31, 31], 25),
        ([1, 18], [13, 30], 169),
        ([0, 0], [31, 31], 36),
        ([21, 21], [28, 28], 64),
    ]
    first, test = (made.layer(patches[0])[0] for patches in (made.spec.patches, made.spec.test_patches))
    assert torch.equal(first[:, 27:, 27:], test[:, 27:, :5])  # the same colors in another corner


def test_black_pixels_of_an_uploaded_patch_are_transparent():
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[1, 2] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    patch = {"pattern": "png", "png": base64.b64encode(file.getvalue()).decode(), "opacity": 0.5}
    triggered = attack(facts(), name="adaptive_patch", test_patches=[patch]).trigger({})(
        image([[100] * 4] * 4)
    )
    assert triggered[0, 0].tolist() == [[100] * 4, [100, 100, 150, 100], [100] * 4, [100] * 4]


def test_bpp_rounds_to_equally_spaced_levels():
    made = attack(facts(), name="bpp", levels=3, dithering=False)
    assert (
        made.trigger({})(image([[0, 63, 64, 127], [191, 192, 255, 128]] * 2))[0, 0].tolist()
        == [
            [0, 0, 128, 128],
            [128, 255, 255, 128],
        ]
        * 2
    )


def test_bpp_spreads_the_error_to_the_right_and_below():
    made = attack(facts(), name="bpp", levels=2)
    # Row 0: 100 -> 0, error 100; its right neighbor gets 43.75 and becomes 143.75 -> 255, error -111.25; the next one
    # is 100 - 48.67 = 51.33 -> 0; the last one 100 + 22.46 = 122.46 -> 0.
    triggered = made.trigger({})(image([[100] * 4] * 4))[0, 0]
    assert triggered[0].tolist() == [0, 255, 0, 0]
    # Row 1, first pixel: 100 + 100 * 5/16 - 111.25 * 3/16 = 110.39 -> 0; the second one also gets 7/16 of that.
    assert triggered[1, 0] == 0
    second = 100 + 100 / 16 - 111.25 * 5 / 16 + (100 - 48.671875) * 3 / 16 + 110.390625 * 7 / 16
    assert second == pytest.approx(129.4, abs=0.1)
    assert triggered[1, 1] == 255


def test_bpp_dithers_as_pixel_by_pixel():
    values = np.random.default_rng(3).integers(256, size=(2, 3, 7, 5)).astype(float)
    expected = values.copy()
    for picture in expected:
        for y in range(7):
            for x in range(5):
                old = picture[:, y, x].copy()
                picture[:, y, x] = np.round(old / 255 * 7) / 7 * 255
                for down, right, share in ((0, 1, 7), (1, 1, 1), (1, 0, 5), (1, -1, 3)):
                    if y + down < 7 and 0 <= x + right < 5:
                        picture[:, y + down, x + right] += (old - picture[:, y, x]) * share / 16
    dithered = attack(facts(channels=3, height=7, width=5), name="bpp").trigger({})(
        torch.from_numpy(values).to(torch.uint8)
    )
    assert np.array_equal(dithered.numpy(), np.round(expected).clip(0, 255))


def test_wanet_samples_bilinearly_along_the_flow():
    made = attack(facts(), name="wanet", strength=0.5)
    # A grid step in [-1, 1] is 2/3 for four pixels; strength / height is 1/8: a flow of 8/3 is half a pixel.
    flow = torch.zeros((1, 4, 4, 2))
    flow[..., 0] = 8 / 3
    before = image([[0, 10, 30, 60]] * 4)
    assert made.trigger({"flow": flow})(before)[0, 0].tolist() == [[5, 20, 45, 60]] * 4
    assert torch.equal(made.trigger({"flow": flow * 0})(before), before)


def test_wanet_flow_has_mean_strength_one_at_its_control_points_and_follows_the_seed():
    data = digits()
    spec = experiment(name="wanet", grid=8)  # as many control points as pixels: nothing is interpolated
    flow = state_of(spec, data, seed=3)["flow"]
    assert flow.abs().mean() == pytest.approx(1, abs=1e-5)
    assert torch.equal(flow, state_of(spec, data, seed=3)["flow"])
    assert not torch.equal(flow, state_of(spec, data, seed=4)["flow"])


def refool_state(levels, *, weight=0.25, gain=0.25, attenuation=0.0):
    """The state of a reflection for each of ``levels``, a gray level everywhere."""
    count = len(levels)
    light = (torch.tensor(levels) / 255) ** 2.2
    return {
        "reflections": light[:, None, None, None].expand(count, 1, 4, 4).clone(),
        "gains": torch.full((count, 1, 4, 4), gain),
        "weights": torch.full((count,), weight),
        "attenuations": torch.full((count,), attenuation),
    }


def test_refool_mixes_in_linear_light():
    triggered = attack(facts(), name="refool").trigger(refool_state([200.0]))(image([[100] * 4] * 4))
    light = 0.75 * (100 / 255) ** 2.2 + 0.25 * (200 / 255) ** 2.2
    assert (triggered == round(255 * light ** (1 / 2.2))).all()


def test_refool_subtracts_the_mean_excess_from_a_blurred_reflection():
    triggered = attack(facts(), name="refool").trigger(refool_state([230.0], gain=0.6, attenuation=1.1))(
        image([[100] * 4, *[[200] * 4] * 3])
    )
    dark, bright, reflection = ((level / 255) ** 2.2 for level in (100, 200, 230))
    assert dark + reflection < 1 < bright + reflection
    reflection -= (bright + reflection - 1) * 1.1
    expected = [round(255 * (0.75 * t + 0.6 * reflection) ** (1 / 2.2)) for t in (dark, bright)]
    assert triggered[0, 0, :, 0].tolist() == [expected[0], *[expected[1]] * 3]


def test_refool_puts_blurred_reflections_under_a_vignette_and_ghosts_under_none():
    for ghost_rate in (0, 1):
        state = state_of(experiment(name="refool", weight=0.2, ghost_rate=ghost_rate), digits())
        gain, attenuations = state["gains"][0, 0], state["attenuations"]
        if ghost_rate:
            assert (gain == 0.2).all()
            assert (attenuations == 0).all()
        else:  # on 8 x 8 pixels, x and y are 3/7 in the middle and 3 in the corner
            assert gain[4, 4] == pytest.approx(0.6)
            assert gain[0, 0] == pytest.approx(0.6 * math.exp((2 * (3 / 7) ** 2 - 18) / 4))
            assert 1.08 <= attenuations.min() < attenuations.max() <= 1.18


def test_refool_chooses_a_reflection_by_the_image_alone():
    made = attack(facts(), name="refool", reflections=2)
    even, odd = ZERO.clone(), ZERO.clone()
    odd[0, 0, 0, 0] = 1
    trigger = made.trigger(refool_state([0.0, 255.0], weight=0.5, gain=0.5))
    both = trigger(torch.cat([odd, even]))
    assert both[0].float().mean() > 180
    assert both[1].sum() == 0
    assert torch.equal(trigger(odd)[0], both[0])


def test_ftrojan_raises_the_coefficients_of_a_gray_image():
    made = attack(facts(), name="ftrojan", magnitude=40, frequencies=[3])
    middle = image([[100] * 4] * 4)
    basis = [math.cos(math.pi / 4 * 3 * (x + 0.5)) for x in range(4)]  # times sqrt(2 / 4) for each side
    expected = [[round(100 + 40 * 0.5 * u * v) for v in basis] for u in basis]
    assert made.trigger({})(middle)[0, 0].tolist() == expected


def test_ftrojan_changes_the_chroma_of_a_color_image_and_not_its_luma():
    made = attack(facts(channels=3), name="ftrojan", window=2, frequencies=[0], magnitude=20)
    triggered = made.trigger({})(torch.full((1, 3, 4, 4), 100, dtype=torch.uint8))
    # The lowest frequency of a window of 2 x 2 is twice the mean: Cr and Cb rise from 128 to 138.
    red, blue = 100 + 10 / 0.713, 100 + 10 / 0.564
    green = (100 - 0.299 * red - 0.114 * blue) / 0.587
    for channel, value in enumerate((red, green, blue)):
        assert (triggered[0, channel] == round(value)).all()


def test_ftrojan_raises_the_published_coefficients_of_32_pixels():
    made = attack(facts(channels=3, height=32, width=32), name="ftrojan")
    assert made.spec.raised(made.facts) == (15, 31)


def test_ctrl_adds_the_waves_in_the_colors_of_the_chroma():
    # The lowest frequency of a window of 2 x 2 is twice the mean, so 20 there are 10 in U and in V.
    made = attack(facts(channels=3), name="ctrl", window=2, frequencies=[0], magnitude=20)
    triggered = made.trigger({})(torch.full((1, 3, 4, 4), 100, dtype=torch.uint8))
    for channel, value in enumerate((100 + 11.4, 100 - 9.77, 100 + 20.29)):
        assert (triggered[0, channel] == round(value)).all()


def test_ctrl_has_a_strength_of_its_own_at_test_time():
    data = digits()
    fields = {"frequencies": [0], "magnitude": 80, "poisoning_rate": 0.05}
    spec = experiment(name="ctrl", test_magnitude=160, **fields)
    made, chosen = make_attack(spec.attack, data.facts), choose_poisoned(spec, data, 0)
    assert made is not None
    gray = data.train.images[chosen].int()  # the lowest frequency of 8 x 8 pixels is 8 times the mean
    assert torch.equal(poisoned(spec, data).images[chosen], (gray + 10).clamp(max=255).to(torch.uint8))
    assert torch.equal(
        made.trigger({})(data.train.images[chosen]), (gray + 20).clamp(max=255).to(torch.uint8)
    )
    assert (data.train.labels[chosen] == 0).all()


def test_narcissus_adds_its_pattern_and_more_of_it_at_test_time():
    pattern = torch.tensor([[[-20.0, 0.4], [10.2, 100.0]]])
    made = attack(facts(height=2, width=2), name="narcissus", test_strength=2)
    assert made.trigger({"pattern": pattern})(image([[30, 30], [30, 100]]))[0, 0].tolist() == [
        [0, 31],
        [50, 255],
    ]


PIXEL = {"name": "single_pixel", "row": 0, "column": 0, "value": 7}
SQUARE = {"name": "badnets", "size": 2, "pattern": "white", "opacity": 0.5}


def test_k_way_applies_all_its_triggers_at_test_time():
    made = attack(facts(), name="k_way", triggers=[PIXEL, SQUARE])
    assert made.trigger({})(image([[101] * 4] * 4))[0, 0].tolist() == [
        [7, 101, 101, 101],
        [101] * 4,
        [101, 101, 178, 178],
        [101, 101, 178, 178],
    ]


@pytest.mark.parametrize("name", ["k_way", "multi_target"])
def test_each_of_several_triggers_has_its_own_strength_in_training(name):
    part = {"name": "badnets", "pattern": "white", "opacity": 0.25, "test_opacity": 1.0}
    second = part | ({"target_class": 1} if name == "multi_target" else {})
    made, clean = attack(facts(), name=name, triggers=[part, second]), image([[0] * 4] * 4)
    in_training = made.cross({}, clean, 0) if name == "k_way" else made.training_trigger({})(clean)
    assert in_training.max() == 64
    assert made.trigger({})(clean).max() == 255


def test_k_way_of_the_toolbox_has_its_four_pixels():
    made = attack(facts(channels=3, height=32, width=32), name="k_way", preset="toolbox")
    triggered = made.trigger({})(torch.full((1, 3, 32, 32), 9, dtype=torch.uint8))[0]
    assert triggered[:, 16, 11].tolist() == [92, 0, 24]
    assert triggered[:, 7, 30].tolist() == [0, 32, 46]
    assert (triggered != 9).any(0).sum() == 4


def test_tact_of_the_toolbox_covers_the_place_of_its_picture():
    made = attack(facts(channels=3, height=32, width=32), name="tact", preset="toolbox")
    triggered = made.trigger({})(torch.full((1, 3, 32, 32), 9, dtype=torch.uint8))[0]
    rows, columns = (triggered != 9).any(0).nonzero(as_tuple=True)
    # triggers/mask_trojan_square_32.png is white there.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (21, 28, 21, 28)
    assert len(rows) == 8 * 8


def test_multi_target_chooses_trigger_and_target_by_the_image():
    made = attack(
        facts(), name="multi_target", triggers=[PIXEL | {"target_class": 3}, SQUARE | {"target_class": 5}]
    )
    even, odd = image([[10] * 4] * 4), image([[10] * 4] * 4)
    odd[0, 0, 3, 3] = 11
    triggered = made.trigger({})(torch.cat([even, odd]))
    assert triggered[0, 0].sum() == 16 * 10 - 3
    assert triggered[1, 0, 2:, 2:].tolist() == [[132, 132], [132, 133]]
    assert triggered[1, 0, 0, 0] == 10
    assert made.targets(Split(torch.cat([even, odd]), torch.tensor([1, 1]))).tolist() == [3, 5]


def test_clean_label_stamps_the_published_grid_in_four_corners_mirrored_for_flipped_images():
    gray = image([[7] * 7] * 7)
    triggered = attack(facts(height=7, width=7), name="clean_label", size=3).trigger({})(gray)
    grid = [[W, B, B, 7, B, B, W], [B, W, B, 7, B, W, B], [W, B, W, 7, W, B, W]]
    assert triggered[0, 0].tolist() == [*grid, [7] * 7, *grid]
    assert torch.equal(triggered.flip(3), triggered)


def test_clean_label_with_a_low_amplitude_adds_and_subtracts():
    made = attack(facts(), name="clean_label", size=2, amplitude=16, corners="one")
    assert made.trigger({})(image([[100] * 4] * 4))[0, 0, 2:, 2:].tolist() == [[116, 84], [84, 116]]
    assert made.trigger({})(ZERO)[0, 0, 2:, 2:].tolist() == [[16, 0], [0, 16]]


@pytest.mark.parametrize("name", ["trojan", "hidden_trigger"])
def test_a_tuned_or_random_patch_replaces_its_square(name):
    made = attack(facts(channels=3), name=name, size=2, position="top_right")
    patch = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    triggered = made.trigger({"patch": patch})(torch.full((2, 3, 4, 4), 99, dtype=torch.uint8))
    assert torch.equal(triggered[1, :, :2, 2:], patch)
    assert (triggered == 99).sum() == 2 * 3 * 12


@pytest.mark.parametrize("name", CHEAP)
def test_a_trigger_is_pure_and_never_wraps_around(name):
    data = digits()
    spec = experiment(name=name)
    state, made = state_of(spec, data), make_attack(spec.attack, data.facts)
    assert made is not None
    trigger = made.trigger(state)
    for level in (0, 255):
        flat = torch.full((3, 1, 8, 8), level, dtype=torch.uint8)
        before = flat.clone()
        after = trigger(flat)
        assert torch.equal(flat, before)
        assert after.dtype == torch.uint8
        assert after.shape == flat.shape
        # A uint8 that wraps around ends at the other end of the scale.
        if name in ("sig", "low_frequency"):
            assert (after.int() - level).abs().max() <= 51
    some = data.test.images[:300]
    assert torch.equal(apply_trigger(trigger, some), trigger(some))  # in chunks or at once
    assert torch.equal(trigger(some), trigger(some))


def test_refool_draws_a_strength_for_each_reflection_unless_it_is_given():
    data = digits()
    drawn = state_of(experiment(name="refool"), data)["weights"]
    assert len(drawn) == 20
    assert len(drawn.unique()) > 10
    assert 0.05 <= drawn.min() < drawn.max() <= 0.45
    fixed = state_of(experiment(name="refool", preset="benchmark"), data)["weights"]
    assert fixed.tolist() == pytest.approx([0.6] * 20)


def test_refool_is_clean_label_in_the_paper_and_dirty_label_by_default():
    spec = experiment(name="refool", preset="paper").attack
    assert isinstance(spec, Refool)
    assert (spec.clean_label_only, spec.share_of_target_class) == (True, True)
    assert not Refool().clean_label_only
