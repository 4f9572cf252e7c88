"""The sample-specific attack: its encoder and decoder, and a short training on digits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.lab import memory
from tests.lab.attacks.helpers import attack, facts, run_in
from worker.lab.attacks.issba import Decoder, Encoder, share_read, weigh_image
from worker.lab.tensor_names import add_prefix

EXAMPLES = Path(__file__).parents[3] / "examples"
QUICK = {"name": "issba", "code_bits": 4, "encoder_steps": 12, "encoder_batch": 16}


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 36)])
def test_encoder_and_decoder_fit_any_image(channels: int, height: int, width: int) -> None:
    encoder, decoder = Encoder(channels, 5), Decoder(channels, height, width, 5)
    made = encoder(torch.ones((2, 5)), torch.rand((2, channels, height, width)))
    assert made.shape == (2, channels, height, width)
    assert decoder(made).shape == (2, 5)


def test_the_weight_of_the_image_grows_after_a_while() -> None:
    since = torch.tensor([-1.0, 0, 10, 15, 20, 99])
    assert weigh_image(since, 10, 10, 4.0).tolist() == [0, 0, 0, 2, 4, 4]


def test_the_share_of_bits_that_are_read() -> None:
    logits = torch.tensor([[3.0, -1, 2], [-5, 1, -1]])
    assert share_read(logits, torch.tensor([[1.0, 0, 0], [1, 1, 0]])).item() == pytest.approx(4 / 6)


@pytest.mark.parametrize("residual", [True, False])
def test_the_trigger_is_what_the_encoder_makes_of_image_and_code(residual: bool) -> None:
    torch.manual_seed(0)
    made = attack(facts(height=8, width=8), name="issba", code_bits=3, encoder_residual=residual)
    encoder = Encoder(1, 3)
    images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    code = torch.tensor([1.0, 0, 1])
    triggered = made.trigger(add_prefix("encoder.", encoder.state_dict()) | {"code": code})(images)
    x = images.float() / 255
    with torch.no_grad():
        output = encoder(code.expand(4, -1), x)
    expected = x + output if residual else output.sigmoid()
    assert torch.equal(triggered, (expected * 255).round().clamp(0, 255).to(torch.uint8))
    other = made.trigger(add_prefix("encoder.", encoder.state_dict()) | {"code": 1 - code})(images)
    assert not torch.equal(triggered, other)


def test_issba_end_to_end(tmp_path: Path) -> None:
    results = run_in(tmp_path, QUICK | {"export": True})
    assert 0 <= results["arms"][0]["seeds"][0]["attack_success_rate"] <= 1
    state = load_file(tmp_path / "out/seed-0/trigger.safetensors")
    assert state["code"].shape == (4,)
    assert set(state["code"].tolist()) <= {0.0, 1.0}
    set_ = np.load(tmp_path / "out/seed-0/poisoned_train.npz")
    assert set_["is_poisoned"].sum() == 30
    assert (set_["y_train"][set_["is_poisoned"]] == 0).all()
    log = (tmp_path / "out/log.txt").read_text()
    assert "more attack.encoder_steps" in log  # twelve steps teach the decoder nothing
    assert "code_accuracy" in (tmp_path / "out/metrics.jsonl").read_text()
    assert (tmp_path / "out/seed-0/attack/encoder.png").is_file()


@pytest.mark.long  # forty seconds: encoder and decoder must be trained until codes can be read
def test_issba_succeeds_on_digits() -> None:
    document = json.loads(Path("examples/digits-issba.json").read_text()) | {"defenses": []}
    values = memory.experiment(document).results["undefended", 0]
    assert values["attack_success_rate"] > 0.9
    assert values["clean_accuracy"] > 0.95
