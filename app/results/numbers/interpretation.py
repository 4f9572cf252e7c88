"""The numbers of an experiment in sentences: did the attack work, did the defenses, and at what cost?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Tone = Literal["good", "bad", "note"]
Means = Mapping[str, float]
WORKS, REMOVED = 0.9, 0.1
"""An attack works from this attack success rate; a backdoor counts as removed up to this one."""
WIDE = 0.15
"""Half-width of an interval from which the seeds are said to disagree."""
LONGEST_ACRONYM = 4


class Finding(NamedTuple):
    """One sentence. The tone is that of a defender: a working attack is bad."""

    tone: Tone
    text: str


def findings(arms: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> Iterator[Finding]:
    """``arms`` are those of a results document, ``spec`` is the canonical one. Missing arms are skipped."""
    means: dict[str, dict[str, float]] = {
        arm["arm"]: {name: value["mean"] for name, value in arm["aggregate"].items() if value} for arm in arms
    }
    attacked = means.get("undefended", {})
    if attacked:
        yield from _attack(attacked, means.get("clean", {}), spec["attack"])
    for defense in spec["defenses"]:
        arm = defense.get("arm") or defense["name"]
        if arm in means:
            yield from _defense(arm.upper() if len(arm) <= LONGEST_ACRONYM else arm, means[arm], attacked)
    if means:
        yield _seeds(max(value["n"] for arm in arms for value in arm["aggregate"].values() if value))
    unsure = [arm["arm"] for arm in arms if _half_width(arm["aggregate"].get("attack_success_rate")) > WIDE]
    if unsure:
        yield Finding(
            "note",
            f"The seeds disagree about attack success under {', '.join(unsure)}: the interval is wider than "
            f"± {100 * WIDE:.0f} points. Look at each seed separately, or run more seeds.",
        )


def _attack(attacked: Means, clean: Means, attack: Mapping[str, Any]) -> Iterator[Finding]:
    accuracy = _percent(attacked["clean_accuracy"])
    all_to_all = attack.get("label_mode") == "all_to_all"
    target = "the class after their own" if all_to_all else f"class {attack.get('target_class')}"
    if attack["name"] == "given" and attack.get("target_class") is None:
        target = "the class that the attacker aims at"
    if "attack_success_rate" in attacked:
        works = attacked["attack_success_rate"] >= WORKS
        yield Finding(
            "bad" if works else "good",
            f"The attack ({attack['name']}) {'works' if works else 'does not work well'}: with the trigger, "
            f"{_percent(attacked['attack_success_rate'])} of the test images of other classes are classified as "
            f"{target}, while accuracy on clean images is {accuracy}.",
        )
    elif "target_image_hit" in attacked:
        hit = attacked["target_image_hit"]
        yield Finding(
            "bad" if hit >= WORKS else "good",
            f"The attack ({attack['name']}) has a single target image, which is classified as {target} in "
            f"{_percent(hit)} of the runs; accuracy on clean images is {accuracy}.",
        )
    elif attack["name"] == "given":
        yield Finding(
            "note",
            "Attack success was not measured: the dataset has no test images with the trigger whose target is known. "
            f"Accuracy on clean images is {accuracy}.",
        )
    if "clean_accuracy" in clean:
        change = 100 * (attacked["clean_accuracy"] - clean["clean_accuracy"])
        yield Finding(
            "note",
            f"Trained on clean data, the model reaches {_percent(clean['clean_accuracy'])}. The poison changes "
            f"that by {change:+.1f} points; accuracy alone would show nothing else of the attack.",
        )


def _input_detection(name: str, means: Means) -> Finding:
    """An input detection leaves the model as it is, so only what it flags counts."""
    cost = f"{_percent(means['input_false_positive_rate'])} of the clean ones"
    if "input_true_positive_rate" not in means:
        return Finding("note", f"{name} flags {cost} of the test images. It does not change the model.")
    found, auroc = means["input_true_positive_rate"], means["input_auroc"]
    return Finding(
        "good" if auroc >= WORKS else "bad",
        f"{name} flags {_percent(found)} of the triggered test images and {cost}; the AUROC is {auroc:.3f}. It does "
        "not change the model.",
    )


def _defense(name: str, defended: Means, attacked: Means) -> Iterator[Finding]:
    if "input_false_positive_rate" in defended:
        yield _input_detection(name, defended)
        return
    if "attack_success_rate" in attacked and "attack_success_rate" in defended:
        removed = defended["attack_success_rate"] <= REMOVED
        change = 100 * (defended["clean_accuracy"] - attacked["clean_accuracy"])
        time = ""
        if "seconds" in defended and "seconds" in attacked:
            time = f", and training takes {defended['seconds']:.0f} s instead of {attacked['seconds']:.0f} s"
        yield Finding(
            "good" if removed else "bad",
            f"{name} {'removes' if removed else 'does not remove'} the backdoor: attack success is "
            f"{_percent(defended['attack_success_rate'])}. The cost: accuracy on clean images changes by "
            f"{change:+.1f} points, to {_percent(defended['clean_accuracy'])}{time}.",
        )
    elif "clean_accuracy" in defended:
        yield Finding("note", f"{name}: accuracy on clean images is {_percent(defended['clean_accuracy'])}.")
    if "isolation_precision" in defended:
        precision, recall = defended["isolation_precision"], ""
        if "isolation_recall" in defended:
            recall = f"; they include {_percent(defended['isolation_recall'])} of all poisoned images"
        yield Finding(
            "good" if precision >= WORKS else "bad",
            f"Of the training images that {name} isolates, {_percent(precision)} are poisoned{recall}.",
        )


def _seeds(number: int) -> Finding:
    if number == 1:
        return Finding("note", "These numbers are from one seed; an interval requires at least three seeds.")
    return Finding("note", f"Numbers are means over {number} seeds with their 95 % interval.")


def _half_width(value: Mapping[str, Any] | None) -> float:
    """Half the width of an interval; 0 if there is none."""
    high = value.get("high") if value else None
    return 0.0 if value is None or high is None else float(high - value["mean"])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
