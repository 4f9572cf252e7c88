"""A whole experiment as one call: poison, train, defend, measure, draw."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from app.specs.base import canonical_json
from app.specs.checks import find_problems, find_victim_problems
from app.specs.defense import DefenseSpec
from app.specs.defenses.base import CleanSetDefense
from app.specs.experiment import ATTACK, CLEAN, UNDEFENDED, ExperimentSpec
from app.specs.facts import DatasetFacts
from app.specs.metrics import arms_document
from app.specs.model import ModelSpec
from app.specs.stages import PlannedStage, plan
from worker.lab import attack_files
from worker.lab.attacks import Attack, AttackLab, PoisonedSet, Prepared, State, make
from worker.lab.attacks.poisoning import choose as choose_poisoned
from worker.lab.attacks.poisoning import poison, rebuild
from worker.lab.brought import Brought, read
from worker.lab.compute import Compute, choose
from worker.lab.contracts import (
    CanceledError,
    LabError,
    Recorder,
    Scope,
    SpecError,
    StageBusyError,
    StageStore,
)
from worker.lab.data.augment import resolve
from worker.lab.data.datasets import Dataset, Split, facts_of, load, stratified
from worker.lab.defenses import defend
from worker.lab.defenses.base import (
    DetectionDefense,
    Harness,
    RepairDefense,
    TrainingDefense,
    load_state,
    state,
)
from worker.lab.defenses.holdout import CleanSet, draw
from worker.lab.evaluation import TestSet, accuracy, evaluate, isolation_quality
from worker.lab.manifest import NAME as MANIFEST
from worker.lab.manifest import StageDone, manifest
from worker.lab.networks import Network, build
from worker.lab.networks.stamped import Stamped
from worker.lab.report import Report
from worker.lab.stages import Outcome, Progress, StageRun
from worker.lab.training import Recipe, train

CURVE_IMAGES = 1000  # the curves of each epoch use so many test images; final results use all
CURVES = ("clean_accuracy", "attack_success_rate", "cross_trigger_accuracy")
STILL_BACKDOORED = 0.1  # a defended model with a higher attack success rate is labeled as backdoored


def run(
    spec: ExperimentSpec,
    recorder: Recorder,
    store: StageStore,
    *,
    data_dir: Path,
    device: str | None = None,
    checkpoint_seconds: float = 30.0,
    victim: Path | None = None,
) -> dict[str, Any]:
    """Run every arm for every seed; returns ``{"arms": [...]}``.

    ``victim`` is the safetensors file of the model that the spec's victim names; without one the victim is trained.
    An arm that raises a LabError is reported to the recorder and the others go on. ``device`` overrides the spec's.
    Raises SpecError, BadModelError or DatasetMissingError before any work, CanceledError and StageBusyError from
    within, and the last arm's error if no arm at all came to a result.
    """
    began = datetime.now(UTC)
    facts, version = facts_of(spec.dataset, data_dir)
    if problems := find_problems(spec, facts):
        raise SpecError("; ".join(map(str, problems)))
    try:
        compute = choose(device or spec.device, spec.training.precision, spec.training.compile)
    except ValueError as error:
        raise SpecError(str(error)) from error
    brought = bring(spec, facts, victim)
    stages = plan(spec, version, brought.sha256 if brought else "")
    progress = Progress(sum(stage.epochs for stage in stages))
    surroundings = Surroundings(recorder, store, compute, progress, checkpoint_seconds, stages, brought)
    report = Report(spec, facts.subset(spec.dataset), recorder)
    rows: list[dict[str, Any]] = []
    failure: LabError | None = None
    for seed in spec.seeds:
        data = load(spec.dataset, data_dir, seed).to(compute.device)
        try:
            lab = SeedLab(spec, seed, data, surroundings, report)
        except (CanceledError, StageBusyError):
            raise
        except LabError as error:  # the attack could not be prepared: no arm of this seed can be trained
            failure = error
            for arm in spec.arms:
                recorder.arm_failed(Scope(arm, seed), error)
            continue
        for arm in spec.arms:
            try:
                rows.append({"arm": arm, "seed": seed} | lab.run_arm(arm))
            except (CanceledError, StageBusyError):
                raise
            except LabError as error:
                failure = error
                recorder.arm_failed(Scope(arm, seed), error)
        report.seed_done(seed, lab.test)
    if not rows and failure is not None:
        raise failure
    arms = arms_document(spec.arms, rows)
    report.experiment_done(arms)
    sha256 = brought.sha256 if brought else None
    document = manifest(spec, data_dir, compute, surroundings.done, arms, began, sha256)
    text = json.dumps(document, indent=1).encode()
    recorder.artifact(Scope(), MANIFEST, "data", "application/json", text, {})
    return {"arms": arms}


@dataclass(frozen=True)
class Surroundings:
    """What every stage of an experiment shares."""

    recorder: Recorder
    store: StageStore
    compute: Compute
    progress: Progress
    checkpoint_seconds: float
    plan: list[PlannedStage]
    brought: Brought | None
    done: list[StageDone] = field(default_factory=list)

    def stage_run(self, kind: str, arm: str | None, seed: int) -> StageRun:
        """The run of the planned stage, its steps following those of the arm's stages before it."""
        ours = [stage for stage in self.plan if stage.arm == arm and stage.seed == seed]
        position = next(i for i, stage in enumerate(ours) if stage.kind == kind)
        return StageRun(
            ours[position],
            self.recorder,
            self.store,
            self.compute,
            self.progress,
            self.checkpoint_seconds,
            first_step=sum(stage.epochs for stage in ours[:position]),
        )


class SeedLab:
    """One seed of an experiment: its data, its poisoned set, and its arms."""

    def __init__(
        self, spec: ExperimentSpec, seed: int, data: Dataset, surroundings: Surroundings, report: Report
    ) -> None:
        self.spec = spec
        self.seed = seed
        self.data = data
        self.here = surroundings
        self.report = report
        self.compute = surroundings.compute
        self.recipe = Recipe.of(spec.training, resolve(spec.training.augmentation, spec.dataset, data.facts))
        attack = make(spec.attack, data.facts)
        prepared = Prepared() if attack is None else attack.prepare(self.attack_lab(attack))
        poisoned = self.stage(
            "poisoned_set", None, lambda run: run.finish(poison(spec, data, attack, prepared, seed))
        )
        self.poisoned: PoisonedSet = rebuild(data.train, poisoned.tensors)
        self.test = TestSet.make(data.test, attack, self.poisoned.state)
        self.curve_test = self._curve_test(attack, self.poisoned.state)
        self.victims: dict[str, dict[str, Tensor]] = {}
        report.poisoned_set(seed, data.train.images, self.poisoned, poisoned.tensors["index"], self.test)
        self.stealth = attack_files.keep(
            spec, seed, data, attack, prepared, self.poisoned, self.test, surroundings.recorder
        )

    def attack_lab(self, attack: Attack[Any]) -> AttackLab:
        """What the attack prepares itself with: the clean set, and which samples it will poison."""
        return AttackLab(
            train=self.data.train,
            test=self.data.test,
            chosen=choose_poisoned(self.spec, self.data, self.seed).to(self.compute.device),
            facts=self.data.facts,
            seed=self.seed,
            compute=self.compute,
            new_network=lambda purpose: self.new_network(purpose, self.data.train.images),
            recipe=replace(self.recipe),
            stage=lambda kind, compute: self.stage(kind, ATTACK, compute),
            measure=lambda network, state: self._curves(network, self._curve_test(attack, state)),
        )

    def _curve_test(self, attack: Attack[Any] | None, state: State) -> TestSet:
        test = self.data.test
        some = stratified(test.labels, CURVE_IMAGES, self.data.facts.classes, self.seed).to(
            test.labels.device
        )
        return TestSet.make(test, attack, state, some)

    def stage(self, kind: str, arm: str | None, compute: Callable[[StageRun], Outcome]) -> Outcome:
        """Compute a planned stage or take it from the store."""
        run = self.here.stage_run(kind, arm, self.seed)
        outcome = run.run(compute)
        self.here.done.append(StageDone.of(run, outcome))
        self.report.stage_done(run, outcome)
        return outcome

    def run_arm(self, arm: str) -> dict[str, float | None]:
        """Train or defend, measure, and keep the model. Returns the arm's final numbers."""
        scope = Scope(arm, self.seed)
        if arm == CLEAN:
            network, train_on = self.victim(arm, self.data.train), self.data.train
        else:
            train_on = Split(self.poisoned.images, self.poisoned.labels)
            if arm == UNDEFENDED:
                network = self.victim(arm, train_on)
            else:
                network = self.defend(next(d for d in self.spec.defenses if d.arm_name == arm))
        values = evaluate(network, self.test, self.compute)
        values["train_accuracy"] = accuracy(network, train_on, self.compute)
        values |= self.report.isolation_of(arm, self.seed)
        if arm == UNDEFENDED:
            values |= self.stealth
        values["seconds"] = self.report.seconds_of(arm, self.seed)
        asr = values["attack_success_rate"]
        # Without a success rate (an attack on one image alone) the label errs on the side of caution.
        attacked = arm != CLEAN and self.spec.attack.name != "none"
        backdoored = attacked and (arm == UNDEFENDED or asr is None or asr > STILL_BACKDOORED)
        self.keep(scope, network, backdoored)
        self.report.arm_done(arm, self.seed, self.test, network, self.compute)
        self.here.recorder.result(scope, values)
        return values

    def victim(self, arm: str, split: Split) -> Network:
        """The undefended (or clean) victim, trained by the experiment's recipe, or brought by the user."""
        network = self.new_network("victim", split.images)
        brought = self.here.brought if arm == self.spec.victim_arm else None

        def compute(run: StageRun) -> Outcome:
            if brought is not None:
                return run.finish(brought.tensors)
            train(
                run,
                network,
                split.images,
                split.labels,
                self.recipe,
                after_epoch=lambda n, epoch: self.curve(n),
            )
            return run.finish(state(network))

        self.victims[arm] = self.stage("victim", arm, compute).tensors
        return load_state(stamped_like(network, self.victims[arm]), self.victims[arm], self.compute.device)

    def defend(self, spec: DefenseSpec) -> Network:
        """The defended model. A defense is handed what its kind may see; flags and test set stay in the harness."""
        truth = self.poisoned.is_poisoned

        def score(suspicion: Tensor, isolated: Tensor) -> dict[str, float]:
            return isolation_quality(suspicion, isolated, truth)

        common: dict[str, Any] = {
            "facts": self.data.facts,
            "seed": self.seed,
            "compute": self.compute,
            "recorder": self.here.recorder,
            "new_network": lambda purpose: self.new_network(purpose, self.poisoned.images),
            "recipe": replace(self.recipe),
            "stage": lambda kind, compute: self.stage(kind, spec.arm_name, compute),
            "_harness": Harness(curve=self.curve, score=score),
        }
        poisoned: dict[str, Any] = {"images": self.poisoned.images, "labels": self.poisoned.labels}
        common["clean"] = self.clean_set(spec)
        if spec.kind == "training":
            return defend(spec, TrainingDefense(**common, **poisoned))
        common["victim"] = self.trained_victim()
        if spec.kind == "detection":
            return defend(spec, DetectionDefense(**common, **poisoned))
        return defend(spec, RepairDefense(**common))

    def trained_victim(self) -> Network:
        """A copy of the victim that repair and detection start from; its arm has run before theirs."""
        arm = self.spec.victim_arm
        if arm not in self.victims:
            raise LabError(f"there is no model to defend: the {arm} arm failed")
        network = self.new_network("victim", self.poisoned.images)
        return load_state(network, self.victims[arm], self.compute.device)

    def clean_set(self, spec: DefenseSpec) -> CleanSet | None:
        """The trusted images of a defense that asks for some."""
        if not isinstance(spec, CleanSetDefense):
            return None
        return draw(
            self.data.train, self.data.facts.classes, spec.clean_ratio, spec.held_out_ratio, self.seed
        )

    def new_network(self, purpose: str, images: Tensor) -> Network:
        """A fresh victim that normalizes by the statistics of ``images``, those it is going to be trained on."""
        network = build(self.spec.model, self.data.facts, (purpose, self.seed))
        network.calibrate(images)
        return network.to(self.compute.device)

    def curve(self, network: Network) -> dict[str, float]:
        """An epoch's clean accuracy and attack success rate on part of the test set."""
        return self._curves(network, self.curve_test)

    def _curves(self, network: Network, test: TestSet) -> dict[str, float]:
        values = evaluate(network, test, self.compute)
        return {name: v for name in CURVES if (v := values.get(name)) is not None}

    def keep(self, scope: Scope, network: Network, backdoored: bool) -> None:
        """Store the model as safetensors with the spec and a warning label in the header."""
        labels = {"arm": str(scope.arm), "seed": str(scope.seed), "backdoored": str(backdoored).lower()}
        header = labels | {"spec": canonical_json(self.spec), "architecture": self.spec.model.name}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state(network).items()}
        self.here.recorder.artifact(
            scope,
            f"seed-{self.seed}/{scope.arm}/model.safetensors",
            "checkpoint",
            "application/octet-stream",
            save(tensors, metadata=header),
            {"arm": scope.arm, "seed": scope.seed, "backdoored": backdoored},
        )


def bring(spec: ExperimentSpec, facts: DatasetFacts, victim: Path | None) -> Brought | None:
    """The user's model, found to fit the spec. Raises SpecError, BadModelError."""
    if victim is None:
        if spec.victim is not None:
            raise SpecError(
                f"victim.model_id: the file of model {spec.victim.model_id} is needed, and none was given"
            )
        return None
    brought = read(victim, spec.model, facts.shape)
    if problems := find_victim_problems(spec, spec.model, facts.shape, brought.stamped, facts):
        raise SpecError("; ".join(map(str, problems)))
    return brought


def stamped_like(network: Network, tensors: dict[str, Tensor]) -> Network:
    """``network``, or a stamping one around it if ``tensors`` are those of one."""
    return Stamped.around(network, tensors) if "stamp_mask" in tensors else network


def load_model(spec: ModelSpec, facts: DatasetFacts, tensors: dict[str, Tensor]) -> Network:
    """A network of ``spec`` with the weights of a stored checkpoint, ready to predict on the CPU."""
    network = stamped_like(build(spec, facts, "load"), tensors)
    network.load_state_dict(tensors)
    return network.eval().to(torch.device("cpu"))
