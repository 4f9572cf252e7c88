"""What an experiment need not import, and what replaces it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.quick import QUICK
from worker.lab.sgd import Sgd


def test_an_experiment_does_not_import_the_compiler(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(QUICK))
    script = (
        "import sys\n"
        "from worker.lab.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "print(sorted({'torch._dynamo', 'torch._inductor', 'sympy'} & sys.modules.keys()))\n"
        "sys.exit(code)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "spec.json", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("momentum", "weight_decay", "nesterov"), [(0.9, 5e-4, True), (0.9, 5e-4, False), (0.9, 0.0, True)]
)
def test_sgd_equals_that_of_torch_bit_for_bit(momentum: float, weight_decay: float, nesterov: bool) -> None:
    options = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    ours, theirs = descend(Sgd, **options), descend(torch.optim.SGD, **options)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def descend(make: Callable[..., Any], **options: Any) -> list[torch.Tensor]:
    """Parameters and velocities after some steps, at falling learning rates; one parameter has a gradient later."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(n, 3, generator=generator)) for n in (4, 1, 7)]
    optimizer = make(weights, lr=0.1, **options)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)

        def compute_gradients(trained: int = 2 + step) -> float:
            optimizer.zero_grad(set_to_none=True)
            for weight in weights[:trained]:
                weight.grad = torch.randn(weight.shape, generator=generator)
            return 0.5

        assert optimizer.step(compute_gradients) == 0.5
    return [*weights, *(optimizer.state[weight]["momentum_buffer"] for weight in weights)]
