"""One seed of an experiment: poison, train, defend, measure."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from app.specs.attack import Given, PoisoningAttack
from app.specs.attacks.base import JOINT, SURROGATE
from app.specs.base import canonical_json
from app.specs.checks import clean_set_size
from app.specs.defense import DefenseSpec
from app.specs.defenses.base import CleanSetDefense, HeldOutDefense
from app.specs.experiment import ATTACK, CLEAN, UNDEFENDED, ExperimentSpec
from app.specs.metrics import EFFECTIVENESS, defense_effectiveness
from worker.lab import attack_files
from worker.lab.attacks import Attack, AttackLab, PoisonedSet, Prepared, State, make_attack
from worker.lab.attacks.poisoning import build_poisoned_set, choose_poisoned, make_poison
from worker.lab.contracts import LabError, Scope
from worker.lab.data.augment import resolve_augmentation
from worker.lab.data.datasets import Dataset, Split, draw_stratified
from worker.lab.data.streamed import Images
from worker.lab.defenses import defend
from worker.lab.defenses.base import (
    DataFreeRepair,
    DetectionDefense,
    InputDetectionDefense,
    RepairDefense,
    TrainingDefense,
    UnlabeledRepair,
    copy_state,
    load_state,
)
from worker.lab.defenses.clean_set import CleanSet, draw_clean_set
from worker.lab.evaluation import TestSet, accuracy, chance_warning, evaluate
from worker.lab.given import add_truth, make_given_test_set, set_clean_pool_aside
from worker.lab.harness import make_harness
from worker.lab.manifest import StageRecord
from worker.lab.networks import Network, build_network
from worker.lab.networks.loading import wrap_like_checkpoint
from worker.lab.report import Report
from worker.lab.run_context import RunContext
from worker.lab.stages import Outcome, StageRun
from worker.lab.tensor_files import dump_tensors
from worker.lab.training import Recipe, train

CURVE_IMAGES = 1000  # test images that the curves of each epoch are measured on; final results use all
CURVES = ("clean_accuracy", "attack_success_rate", "cross_trigger_accuracy")
STILL_BACKDOORED = 0.1  # a defended model with a higher attack success rate is labeled as backdoored


class SeedRun:
    """One seed of an experiment: its data, its poisoned set, and its arms."""

    def __init__(
        self, spec: ExperimentSpec, seed: int, data: Dataset, context: RunContext, report: Report
    ) -> None:
        self.spec = spec
        self.seed = seed
        self.data = data
        self.context = context
        self.report = report
        self.compute = context.compute
        self.recipe = Recipe.of(
            spec.training, resolve_augmentation(spec.training.augmentation, spec.dataset, data.facts)
        )
        self.surrogate: dict[str, Tensor] = {}
        self.attackers_model: dict[str, Tensor] = {}
        attack = make_attack(spec.attack, data.facts)
        prepared = Prepared() if attack is None else attack.prepare(self.make_attack_lab(attack))
        poisoned = self.run_stage(
            "poisoned_set",
            None,
            lambda run: run.finish(make_poison(spec, data, attack, prepared, seed)),
        )
        self.poisoned: PoisonedSet = build_poisoned_set(data.train, poisoned.tensors)
        if isinstance(spec.attack, Given):
            self.poisoned = add_truth(self.poisoned, data)
            measured, self.clean_pool = set_clean_pool_aside(spec.attack, data, seed)
            self.test = make_given_test_set(spec.attack, data, measured)
            curve_rows = self._draw_curve_rows(measured)
            self.curve_test = make_given_test_set(
                spec.attack, data, measured.rows(curve_rows), CURVE_IMAGES, seed
            )
            if self.test.targets is None:
                self._warn_unmeasured()
        else:
            self.clean_pool = data.train
            self.test = TestSet.make(data.test, attack, self.poisoned.state)
            self.curve_test = self._make_curve_test(attack, self.poisoned.state)
        self.victims: dict[str, dict[str, Tensor]] = {}
        report.poisoning_done(seed, data.train.images, self.poisoned, self.test)
        # The numbers of the undefended arm, which runs before the defended ones.
        self.undefended: dict[str, float | None] = {}
        self.attacker_metrics = prepared.metrics
        self.stealth = attack_files.record_attack_files(
            spec, seed, data, attack, prepared, self.poisoned, self.test, context.recorder
        )

    def make_attack_lab(self, attack: Attack[Any]) -> AttackLab:
        """What the attack's `prepare` may use: the clean set, and which samples it will poison."""
        return AttackLab(
            train=self.data.train,
            test=self.data.test,
            chosen=choose_poisoned(self.spec, self.data, self.seed).to(self.compute.device),
            facts=self.data.facts,
            seed=self.seed,
            compute=self.compute,
            new_network=lambda purpose: self.new_network(purpose, self.data.train.images),
            recipe=replace(self.recipe),
            stage=self._run_attack_stage,
            clean_accuracy=lambda network: self._measure_curves_on(network, self._make_curve_test(None, {})),
            measure=lambda network, state: self._measure_curves_on(
                network, self._make_curve_test(attack, state)
            ),
            measure_fully=lambda network, state: self._measure_curves_on(
                network, TestSet.make(self.data.test, attack, state)
            ),
        )

    def _make_curve_test(self, attack: Attack[Any] | None, state: State) -> TestSet:
        return TestSet.make(self.data.test, attack, state, self._draw_curve_rows(self.data.test))

    def _draw_curve_rows(self, test: Split) -> Tensor:
        rows = draw_stratified(test.labels, CURVE_IMAGES, self.data.facts.classes, self.seed)
        return rows.to(test.labels.device)

    def _warn_unmeasured(self) -> None:
        """Say in every arm why its attack success is null, which would otherwise look like a failure."""
        if self.test.triggered is None:
            reason = "there are no test images with the trigger"
        else:
            reason = "the target class of the triggered test images is not known: set attack.target_class"
        for arm in self.spec.arms:
            self.context.recorder.warning(Scope(arm, self.seed), f"attack success is not measured: {reason}")

    def _run_attack_stage(self, kind: str, compute: Callable[[StageRun], Outcome]) -> Outcome:
        outcome = self.run_stage(kind, ATTACK, compute)
        if kind == SURROGATE:
            self.surrogate = outcome.tensors
        elif kind == JOINT:
            self.attackers_model = outcome.tensors
        return outcome

    def run_stage(self, kind: str, arm: str | None, compute: Callable[[StageRun], Outcome]) -> Outcome:
        """Compute a planned stage, or load it from the store."""
        run = self.context.stage_run(kind, arm, self.seed)
        outcome = run.run(compute)
        self.context.done.append(StageRecord.of(run, outcome))
        self.report.stage_done(run, outcome)
        return outcome

    def run_arm(self, arm: str) -> dict[str, float | None]:
        """Train or defend, measure, and store the model. Returns the arm's final numbers."""
        scope = Scope(arm, self.seed)
        if arm == CLEAN:
            network, train_on = self.train_victim(arm, self.data.train), self.data.train
        else:
            train_on = Split(self.poisoned.images, self.poisoned.labels)
            if arm == UNDEFENDED:
                network = self.train_victim(arm, train_on)
            else:
                network = self.run_defense(next(d for d in self.spec.defenses if d.arm_name == arm))
        values = evaluate(network, self.test, self.compute)
        clean_accuracy = values["clean_accuracy"]
        assert clean_accuracy is not None
        if (warning := chance_warning(clean_accuracy, self.test.clean.labels)) is not None:
            self.context.recorder.warning(scope, warning)
        values["train_accuracy"] = accuracy(network, train_on, self.compute)
        values |= self.report.stage_metrics(arm, self.seed)
        if arm == UNDEFENDED:
            self.undefended = values
        elif arm != CLEAN and (rating := defense_effectiveness(self.undefended, values)) is not None:
            values[EFFECTIVENESS] = rating
        if arm == UNDEFENDED:
            values |= self.attacker_metrics | self.stealth
        values["seconds"] = self.report.computing_seconds(arm, self.seed)
        asr = values["attack_success_rate"]
        # An attack on a single image may have no success rate; its models are labeled as backdoored.
        attacked = arm != CLEAN and self.spec.attack.name != "none"
        backdoored = attacked and (arm == UNDEFENDED or asr is None or asr > STILL_BACKDOORED)
        self.store_model(scope, network, backdoored)
        self.report.arm_done(arm, self.seed, self.test, network, self.compute)
        self.context.recorder.result(scope, values)
        return values

    def train_victim(self, arm: str, split: Split) -> Network:
        """The undefended (or clean) victim, trained by the experiment's recipe or by the attacker, or uploaded by the
        user."""
        network = self.new_network("victim", split.images)
        user_model = self.context.user_model if arm == self.spec.victim_arm else None
        tuning = self.spec.training.fine_tuning
        recipe = self.recipe
        if tuning is not None:
            recipe = self.recipe.tuned(tuning)
            self._start_from_surrogate(network, tuning.new_head)

        attack = self.spec.attack
        handed_over = arm == UNDEFENDED and isinstance(attack, PoisoningAttack) and attack.hands_over

        def compute(run: StageRun) -> Outcome:
            if handed_over:
                return run.finish(self.attackers_model)
            if user_model is not None:
                # A file that does not say how it normalizes images gets the statistics of the training images.
                normalization = {name: tensor.cpu() for name, tensor in network.named_buffers(recurse=False)}
                return run.finish(normalization | user_model.tensors)
            train(
                run,
                network,
                split.images,
                split.labels,
                recipe,
                after_epoch=lambda n, epoch: self.measure_curves(n),
            )
            return run.finish(copy_state(network))

        self.victims[arm] = self.run_stage("victim", arm, compute).tensors
        return load_state(
            wrap_like_checkpoint(network, self.victims[arm]), self.victims[arm], self.compute.device
        )

    def _start_from_surrogate(self, network: Network, new_head: bool) -> None:
        """Load the surrogate's tensors, its normalization included; those of the head only without ``new_head``."""
        head = {name: tensor.clone() for name, tensor in network.head.state_dict().items()}
        load_state(network, self.surrogate, self.compute.device)
        if new_head:
            network.head.load_state_dict(head)

    def run_defense(self, spec: DefenseSpec) -> Network:
        """The defended model. A defense gets what its kind may see; true flags and test set stay in the harness."""
        common: dict[str, Any] = {
            "facts": self.data.facts,
            "seed": self.seed,
            "compute": self.compute,
            "recorder": self.context.recorder,
            "new_network": lambda purpose: self.new_network(purpose, self.poisoned.images),
            "recipe": replace(self.recipe),
            "stage": lambda kind, compute: self.run_stage(kind, spec.arm_name, compute),
            "_harness": make_harness(
                self.spec.attack, self.data, self.poisoned, self.test, self.compute, self.measure_curves
            ),
        }
        poisoned: dict[str, Any] = {"images": self.poisoned.images, "labels": self.poisoned.labels}
        clean = self.draw_clean_set(spec)
        if spec.kind == "training":
            return defend(spec, TrainingDefense(**common, **poisoned, clean=clean))
        common["victim"] = self.copy_victim()
        if spec.kind == "detection":
            return defend(spec, DetectionDefense(**common, **poisoned, clean=clean))
        if spec.kind == "input_detection":
            return defend(spec, InputDetectionDefense(**common, clean=clean))
        if clean is not None:
            return defend(spec, RepairDefense(**common, clean=clean))
        if spec.needs_poisoned_images:
            return defend(spec, UnlabeledRepair(**common, images=self.poisoned.images))
        return defend(spec, DataFreeRepair(**common))

    def copy_victim(self) -> Network:
        """A copy of the victim for all but training defenses; its arm runs before theirs."""
        arm = self.spec.victim_arm
        if arm not in self.victims:
            raise LabError(f"there is no model to defend: the {arm} arm failed")
        network = self.new_network("victim", self.poisoned.images)
        return load_state(network, self.victims[arm], self.compute.device)

    def draw_clean_set(self, spec: DefenseSpec) -> CleanSet | None:
        """The clean set, for defenses whose spec has one."""
        if not isinstance(spec, CleanSetDefense):
            return None
        held_out_ratio = spec.held_out_ratio if isinstance(spec, HeldOutDefense) else 0.0
        facts = self.data.facts
        size = clean_set_size(spec, facts)
        return draw_clean_set(self.clean_pool, facts.classes, size, held_out_ratio, self.seed)

    def new_network(self, purpose: str, images: Images) -> Network:
        """A fresh victim that normalizes by the statistics of ``images``, its training images."""
        user_model = self.context.user_model
        model = self.spec.model if user_model is None else user_model.variant
        network = build_network(model, self.data.facts, (purpose, self.seed))
        network.calibrate(images)
        return network.to(self.compute.device)

    def measure_curves(self, network: Network) -> dict[str, float]:
        """An epoch's clean accuracy and attack success rate on part of the test set."""
        return self._measure_curves_on(network, self.curve_test)

    def _measure_curves_on(self, network: Network, test: TestSet) -> dict[str, float]:
        values = evaluate(network, test, self.compute)
        return {name: v for name in CURVES if (v := values.get(name)) is not None}

    def store_model(self, scope: Scope, network: Network, backdoored: bool) -> None:
        """Store the model as safetensors, with the spec and the label ``backdoored`` in the header."""
        labels = {"arm": str(scope.arm), "seed": str(scope.seed), "backdoored": str(backdoored).lower()}
        header = labels | {"spec": canonical_json(self.spec), "architecture": self.spec.model.label}
        self.context.recorder.artifact(
            scope,
            f"seed-{self.seed}/{scope.arm}/model.safetensors",
            "checkpoint",
            "application/octet-stream",
            dump_tensors(copy_state(network), header),
            {"arm": scope.arm, "seed": scope.seed, "backdoored": backdoored},
        )
