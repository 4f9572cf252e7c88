"""A checkpoint of torchvision's ResNet-18, as people have it: converted, uploaded and repaired by three commands."""

import json
import subprocess
from pathlib import Path

import torch

from tests.app.sending import pictures
from tests.conftest import BDLAB, Stack
from worker.lab.networks._torchvision import torchvision_models


def test_a_torch_checkpoint_is_converted_uploaded_and_repaired(stack: Stack, tmp_path: Path) -> None:
    net = torchvision_models().resnet18(num_classes=2)
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, tmp_path / "net.pth")
    (tmp_path / "toy.npz").write_bytes(pictures())

    def bdlab(*words: str) -> str:
        done = subprocess.run([BDLAB, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr + stack.logs()
        return done.stdout + done.stderr

    assert "122 tensors of 'state_dict' of net.pth" in bdlab("models", "convert", "net.pth")
    url = ("--url", stack.url)
    dataset = json.loads(bdlab("datasets", "upload", "toy.npz", "--json", *url))["dataset"]
    sent = ("--model", "resnet18", "--shape", "3x6x5", "--classes", "2")
    said = bdlab("models", "upload", "net.safetensors", *sent, *url)
    assert "net.safetensors: prefix 'module.' removed; stem is original; no normalization given" in said
    model_id = said.split()[0]
    model = stack.get(f"/v1/models/{model_id}")
    assert (model["status"], model["model"]) == ("ready", {"name": "resnet18"})
    assert model["mapped"] in said

    spec = {
        "dataset": dataset,
        "model": model["model"],
        "victim": {"model_id": model_id},
        "attack": {"name": "badnets", "size": 2},
        "training": {"epochs": 1, "batch_size": 10},
        "defenses": [{"name": "fine_tuning", "steps": 2, "clean_ratio": 0.3}],
    }
    id = stack.wait(stack.submit(spec))["id"]
    assert [arm["arm"] for arm in stack.results(id)["arms"]] == ["undefended", "fine_tuning"]
    predicted = stack.post(f"/v1/experiments/{id}/predict", {"index": 0}, status=200)
    assert [arm["arm"] for arm in predicted["arms"]] == ["undefended", "fine_tuning"]
