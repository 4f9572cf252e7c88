"""A whole experiment as one call: every arm for every seed, and the report."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.specs.checks import find_problems, find_victim_problems
from app.specs.experiment import ExperimentSpec
from app.specs.facts import DatasetFacts
from app.specs.metrics import arms_document
from app.specs.stages import plan
from worker.lab.compute import choose_compute
from worker.lab.contracts import (
    CanceledError,
    LabError,
    Recorder,
    Scope,
    SpecError,
    StageBusyError,
    StageStore,
)
from worker.lab.data.datasets import draw_subset, load_whole_dataset
from worker.lab.data.streamed import StreamedImages
from worker.lab.manifest import MANIFEST_NAME, build_manifest
from worker.lab.networks import check_architecture
from worker.lab.report import Report
from worker.lab.run_context import RunContext
from worker.lab.seed_run import SeedRun
from worker.lab.stages import Progress
from worker.lab.user_model import UserModel, load_user_model


def run_experiment(
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
    Raises SpecError, BadModelError, DatasetMissingError or DatasetDamagedError before any work, CanceledError and
    StageBusyError from within, and the last arm's error if every arm failed.
    """
    began = datetime.now(UTC)
    # Read once, so that the keys of all stages hold the digest of the very bytes that the stages are computed from.
    whole = load_whole_dataset(spec.dataset, data_dir)
    facts = whole.facts
    if problems := find_problems(spec, facts):
        raise SpecError("; ".join(map(str, problems)))
    check_architecture(spec.model, facts)
    if isinstance(whole.train.images, StreamedImages):
        recorder.log(
            "dataset: too large for this machine's memory; images are read from disk as they are needed"
        )
    try:
        training = spec.training
        compute = choose_compute(device or spec.device, training.precision, training.compile, facts.shape)
    except ValueError as error:
        raise SpecError(str(error)) from error
    user_model = load_victim(spec, facts, victim)
    if user_model is not None and user_model.mapped:
        recorder.log(f"victim's file: {user_model.mapped}")
    stages = plan(spec, whole.version, user_model.sha256 if user_model else "", compute.precision)
    progress = Progress(sum(stage.epochs for stage in stages))
    context = RunContext(recorder, store, compute, progress, checkpoint_seconds, stages, user_model)
    report = Report(spec, facts.subset(spec.dataset), recorder)
    rows: list[dict[str, Any]] = []
    failure: LabError | None = None
    for seed in spec.seeds:
        data = draw_subset(whole, spec.dataset, seed).to(compute.device)
        try:
            seed_run = SeedRun(spec, seed, data, context, report)
        except (CanceledError, StageBusyError):
            raise
        except LabError as error:  # the attack could not be prepared: no arm of this seed can be trained
            failure = error
            for arm in spec.arms:
                recorder.arm_failed(Scope(arm, seed), error)
            continue
        for arm in spec.arms:
            try:
                rows.append({"arm": arm, "seed": seed} | seed_run.run_arm(arm))
            except (CanceledError, StageBusyError):
                raise
            except LabError as error:
                failure = error
                recorder.arm_failed(Scope(arm, seed), error)
        report.seed_done(seed, seed_run.test)
    if not rows and failure is not None:
        raise failure
    arms = arms_document(spec.arms, rows)
    report.experiment_done(arms)
    sha256 = user_model.sha256 if user_model else None
    document = build_manifest(spec, whole, compute, context.done, arms, began, sha256)
    text = json.dumps(document, indent=1).encode()
    recorder.artifact(Scope(), MANIFEST_NAME, "data", "application/json", text, {})
    return {"arms": arms}


def load_victim(spec: ExperimentSpec, facts: DatasetFacts, victim: Path | None) -> UserModel | None:
    """The user's model, checked against the spec; None if the victim is trained. Raises SpecError, BadModelError."""
    if victim is None:
        if spec.victim is not None:
            raise SpecError(f"victim.model_id: the file of model {spec.victim.model_id} is required")
        return None
    user_model = load_user_model(victim, spec.model, facts.shape)
    if problems := find_victim_problems(spec, spec.model, facts.shape, user_model.adds_trigger, facts):
        raise SpecError("; ".join(map(str, problems)))
    return user_model
