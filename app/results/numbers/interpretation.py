"""What the numbers of an experiment say, in sentences: did the attack work, did a defense, and what did it cost?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Tone = Literal["good", "bad", "note"]
WORKS, REMOVED = 0.9, 0.1
"""Attack success from which an attack works, and up to which a backdoor counts as removed."""
WIDE = 0.15
"""Half of an interval from which a mean says little."""

LONGEST_ACRONYM = 4


class Finding(NamedTuple):
    """One sentence. The tone is that of somebody who defends: a working attack is bad."""

    tone: Tone
    text: str


def findings(arms: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> Iterator[Finding]:
    """``arms`` as in a results document, ``spec`` the canonical one; arms that are not there yet are left out."""
    means: dict[str, dict[str, float]] = {
        arm["arm"]: {name: value["mean"] for name, value in arm["aggregate"].items() if value} for arm in arms
    }
    attacked = means.get("undefended", {})
    if attacked:
        yield from _attack(attacked, means.get("clean", {}), spec["attack"])
    for defense in spec["defenses"]:
        name = defense.get("arm") or defense["name"]
        defended = means.get(name)
        if defended is None:
            continue
        if "attack_success_rate" in attacked and "attack_success_rate" in defended:
            yield _defense(name, defended, attacked)
        elif "clean_accuracy" in defended:
            yield Finding(
                "note", f"{_named(name)}: accuracy on clean images is {_percent(defended['clean_accuracy'])}."
            )
        if "isolation_precision" in defended:
            yield _isolation(name, defended)
    if means:
        yield _trust(max(value["n"] for arm in arms for value in arm["aggregate"].values() if value))
    if unsure := [arm["arm"] for arm in arms if _half(arm["aggregate"].get("attack_success_rate")) > WIDE]:
        yield Finding(
            "note",
            f"The seeds disagree about attack success under {', '.join(unsure)}: the interval is wider than "
            f"± {100 * WIDE:.0f} points. Look at each seed by itself, or run more of them.",
        )


def _attack(
    attacked: Mapping[str, float], clean: Mapping[str, float], attack: Mapping[str, Any]
) -> Iterator[Finding]:
    accuracy = _percent(attacked["clean_accuracy"])
    target = (
        "the class after their own"
        if attack.get("label_mode") == "all_to_all"
        else f"class {attack.get('target_class')}"
    )
    if "attack_success_rate" in attacked:
        worked = attacked["attack_success_rate"] >= WORKS
        yield Finding(
            "bad" if worked else "good",
            f"The attack ({attack['name']}) {'works' if worked else 'does not work well'}: with its trigger on, "
            f"{_percent(attacked['attack_success_rate'])} of the test images of other classes are taken for "
            f"{target}, while accuracy on clean images is {accuracy}.",
        )
    elif "target_image_hit" in attacked:
        hit = attacked["target_image_hit"]
        yield Finding(
            "bad" if hit >= WORKS else "good",
            f"The attack ({attack['name']}) is on one image alone, which is taken for {target} in "
            f"{_percent(hit)} of the runs; accuracy on clean images is {accuracy}.",
        )
    if "clean_accuracy" in clean:
        change = 100 * (attacked["clean_accuracy"] - clean["clean_accuracy"])
        yield Finding(
            "note",
            f"Trained on clean data, the model reaches {_percent(clean['clean_accuracy'])}; the poison changes "
            f"that by {change:+.1f} points, which is all that accuracy alone would show of it.",
        )


def _defense(name: str, defended: Mapping[str, float], attacked: Mapping[str, float]) -> Finding:
    removed = defended["attack_success_rate"] <= REMOVED
    change = 100 * (defended["clean_accuracy"] - attacked["clean_accuracy"])
    time = (
        f", and training takes {defended['seconds']:.0f} s instead of {attacked['seconds']:.0f} s"
        if "seconds" in defended and "seconds" in attacked
        else ""
    )
    return Finding(
        "good" if removed else "bad",
        f"{_named(name)} {'removes' if removed else 'does not remove'} the backdoor: "
        f"{_percent(defended['attack_success_rate'])} are still taken for it. "
        f"The cost: accuracy on clean images changes by {change:+.1f} points, to "
        f"{_percent(defended['clean_accuracy'])}{time}.",
    )


def _isolation(name: str, defended: Mapping[str, float]) -> Finding:
    precision = defended["isolation_precision"]
    recall = (
        f", and {_percent(defended['isolation_recall'])} of all poison is among them"
        if "isolation_recall" in defended
        else ""
    )
    return Finding(
        "good" if precision >= WORKS else "bad",
        f"Of the training images that {_named(name)} sets aside, {_percent(precision)} are poisoned{recall}.",
    )


def _trust(seeds: int) -> Finding:
    if seeds == 1:
        return Finding(
            "note",
            "All of this is one seed, so nothing says how much of it is chance; three seeds or more give an interval.",
        )
    return Finding("note", f"Numbers are means over {seeds} seeds with their 95 % interval.")


def _half(value: Mapping[str, Any] | None) -> float:
    """Half the width of an interval; 0 where there is none."""
    high = value.get("high") if value else None
    return 0.0 if value is None or high is None else float(high - value["mean"])


def _named(arm: str) -> str:
    """ABL and the like in capitals, longer names as they are."""
    return arm.upper() if len(arm) <= LONGEST_ACRONYM else arm


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
