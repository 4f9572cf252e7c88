"""PDB: the defender's stamp, and the classes that are shifted where it is missing."""

from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from app.specs.checks import find_problems
from app.specs.defenses.pdb import Pdb
from app.specs.experiment import ExperimentSpec
from app.specs.facts import BUILT_IN
from tests.lab.defenses.cases import BADNETS, SHORT, defended, number, spec
from tests.lab.memory import MemoryStore, experiment
from worker.lab.compute import Compute
from worker.lab.data.augment import Augment
from worker.lab.data.datasets import Split
from worker.lab.defenses.base import Defense
from worker.lab.defenses.pdb import stamp_objective, turn_and_dim
from worker.lab.networks.trigger_input import TriggerInput
from worker.lab.training import Batch


class Watched(nn.Module):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(1, 1, 1, 1)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return torch.zeros(len(x), 2, requires_grad=True)


def test_only_clean_images_are_stamped() -> None:
    inner: Any = Watched()
    mask = torch.zeros(1, 1, 3, 3)
    mask[..., 1, 1] = 1  # where no rotation moves it
    network = TriggerInput(inner, mask, 2 * mask)
    x = torch.full((3, 1, 3, 3), 0.25)
    batch = Batch(x, torch.zeros(3, dtype=torch.int64), torch.tensor([4, 5, 6]), torch.Generator())
    stamp_objective(Compute(torch.device("cpu")), 5, Augment())(network, batch)
    assert torch.equal(inner.seen[0], x[0])
    assert (inner.seen[1:, 0, 1, 1] >= 1).all()  # dimmed to a half at most
    assert (inner.seen[1:, 0, 1, 0] <= 0.25).all()


def test_one_in_five_is_dimmed_and_one_in_two_turned() -> None:
    x = torch.zeros(1000, 1, 32, 32)
    x[..., 16:, :] = 1
    changed = turn_and_dim(x, torch.Generator().manual_seed(0))
    brightest = changed.amax((1, 2, 3))
    assert (brightest < 1).float().mean().item() == pytest.approx(0.2, abs=0.04)
    assert brightest.min() >= 0.5
    turned = (changed > 0).ne(x > 0).any(3).any(2).any(1)
    assert turned.float().mean().item() == pytest.approx(0.5 * 0.9, abs=0.07)  # a small turn moves no pixel


def test_labels_are_shifted_back_where_the_stamp_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Split, Tensor]] = []

    def watch(self: Any, run: Any, network: Any, split: Split, recipe: Any, *, rows: Tensor) -> int:
        seen.append((split, rows))
        return 0

    monkeypatch.setattr(Defense, "fit_on", watch)
    whole = spec(BADNETS, {"name": "pdb", **SHORT["pdb"], "shift": 3}, epochs=1)
    done = experiment(whole | {"dataset": {"name": "digits", "train_size": 300}}, store=MemoryStore())
    ((split, rows),) = seen
    assert (len(split), len(rows)) == (330, 300 + 5 * 30)
    assert sorted(rows.bincount().tolist()) == [1] * 300 + [5] * 30
    # The poison, a tenth of the set, has label 0 and so most often (0 - 3) mod 10.
    assert int(split.labels[:300].mode().values) == 7
    tensors = load(done.files["seed-0/pdb/model.safetensors"])
    assert tensors["stamp_mask"].nonzero().amax(0).tolist() == [0, 0, 1, 1]  # 7 / 32 of 8 pixels, rounded
    assert tensors["stamp_value"].max() == 2


@pytest.mark.parametrize(("fields", "refused"), [({"shift": 10}, "shift"), ({"stamp_size": 8}, "stamp_size")])
def test_a_stamp_that_cannot_work_is_refused(fields: dict[str, int], refused: str) -> None:
    whole = ExperimentSpec.model_validate(spec(BADNETS, {"name": "pdb", **fields}))
    problems = find_problems(whole, BUILT_IN["digits"])
    assert [problem.field for problem in problems] == [f"defenses.0.{refused}"]
    assert Pdb().stamp_side(BUILT_IN["cifar10"]) == 7


@pytest.mark.long  # 100 epochs, the authors' length
def test_the_stamp_overrides_the_trigger() -> None:
    done = defended(BADNETS, {"name": "pdb"}, epochs=5)
    assert number(done, "undefended", "attack_success_rate") > 0.95
    assert number(done, "pdb", "attack_success_rate") < 0.1
    assert number(done, "pdb", "clean_accuracy") > 0.85
