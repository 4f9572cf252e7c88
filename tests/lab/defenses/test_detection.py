"""Detection defenses: they find poison, and on clean data they flag nothing or warn."""

import csv
import io

import pytest

from tests.lab.defenses.cases import BADNETS, NOTHING, Spec, defended, number
from tests.lab.memory import MemoryRecorder

ONE_PIXEL: Spec = {"name": "badnets", "size": 1, "pattern": "white"}


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        # 15 % of each class are removed, so less than that of its class may be poison.
        ("spectral_signatures", {"name": "badnets", "size": 4, "poisoning_rate": 0.008}),
        # The poison must be a clear minority of its class.
        ("activation_clustering", {"name": "badnets", "poisoning_rate": 0.03}),
        ("strip", BADNETS),
    ],
)
def test_the_poison_is_found_and_purged(name: str, attack: Spec) -> None:
    done = defended(attack, {"name": name})
    assert number(done, "undefended", "attack_success_rate") > 0.9
    assert number(done, name, "isolation_recall") > 0.9
    assert number(done, name, "isolation_auroc") > 0.9
    assert number(done, name, "attack_success_rate") < 0.1
    assert number(done, name, "clean_accuracy") > number(done, "undefended", "clean_accuracy") - 0.05
    if name == "activation_clustering":
        rows = table(done, f"seed-0/{name}/classes.csv")
        assert rows[0]["flagged"] == "1"
        assert max(rows, key=lambda row: float(row["silhouette"]))["class"] == "0"
    counts = {n: number(done, name, n) for n in ("true_positives", "false_negatives", "false_positives")}
    assert number(done, name, "isolation_recall") == pytest.approx(
        counts["true_positives"] / (counts["true_positives"] + counts["false_negatives"])
    )
    assert number(done, name, "false_positive_rate") < 0.2
    assert number(done, name, "defense_effectiveness") > 0.9


def test_neural_cleanse_finds_the_class_and_unlearns_its_trigger() -> None:
    done = defended(ONE_PIXEL, {"name": "neural_cleanse", "epochs": 40})
    rows = table(done, "seed-0/neural_cleanse/classes.csv")
    assert [row["class"] for row in rows if row["flagged"] == "1"] == ["0"]
    assert min(rows, key=lambda row: float(row["mask_norm"]))["class"] == "0"
    assert number(done, "neural_cleanse", "target_class_found") == 1
    assert number(done, "neural_cleanse", "wrong_classes_flagged") == 0
    norms = sorted(float(row["mask_norm"]) for row in rows)
    assert number(done, "neural_cleanse", "smallest_mask_norm") == pytest.approx(norms[0], rel=1e-5)
    median, deviation = (number(done, "neural_cleanse", f"{name}_mask_norm") for name in ("median", "mad"))
    assert median == pytest.approx((norms[4] + norms[5]) / 2, rel=1e-5)
    assert number(done, "neural_cleanse", "anomaly_index") == pytest.approx(
        (median - norms[0]) / deviation, rel=1e-4
    )
    assert done.files["seed-0/neural_cleanse/trigger_0.png"].startswith(b"\x89PNG")
    assert number(done, "undefended", "attack_success_rate") > 0.7
    assert number(done, "neural_cleanse", "attack_success_rate") < 0.2
    assert number(done, "neural_cleanse", "clean_accuracy") > 0.85


def test_exclusionary_reclassification_accuses_the_poison_and_acquits_most_classes() -> None:
    defense = {"name": "activation_clustering", "preset": "paper", "then": "nothing"}
    done = defended({"name": "badnets", "size": 4, "poisoning_rate": 0.03}, defense)
    rows = table(done, "seed-0/activation_clustering/classes.csv")
    assert rows[0]["flagged"] == "1"
    assert float(rows[0]["reclassification_score"]) <= 1
    assert sum(row["flagged"] == "1" for row in rows) <= 3
    assert number(done, "activation_clustering", "isolation_recall") > 0.9


def test_the_benchmark_s_clustering_flags_a_cluster_of_every_class() -> None:
    defense = {"name": "activation_clustering", "preset": "benchmark", "then": "nothing"}
    done = defended(NOTHING, defense)
    rows = table(done, "seed-0/activation_clustering/classes.csv")
    assert all(row["flagged"] == "1" for row in rows)
    assert number(done, "activation_clustering", "false_positive_rate") > 0.1


@pytest.mark.parametrize(
    ("name", "most", "words"),
    [
        ("spectral_signatures", 0.16, "no class is an outlier"),
        ("activation_clustering", 0.1, ""),
        ("strip", 0.12, ""),
    ],
)
def test_flags_on_clean_data_come_with_a_warning(name: str, most: float, words: str) -> None:
    done = defended(NOTHING, {"name": name})
    rows = table(done, f"seed-0/{name}/detection.csv")
    assert sum(row["isolated"] == "1" for row in rows) <= most * len(rows)
    assert any(words in message for message in done.warnings) or not words
    assert number(done, name, "clean_accuracy") >= number(done, "clean", "clean_accuracy") - 0.03
    assert "isolation_precision" not in done.results[name, 0]  # undefined if nothing is poisoned
    flags = sum(row["isolated"] == "1" for row in rows)
    assert number(done, name, "false_positives") == flags
    assert number(done, name, "false_positive_rate") == pytest.approx(flags / len(rows))


def test_the_scores_of_every_sample_are_stored_with_the_true_flags() -> None:
    done = defended(BADNETS, {"name": "strip", "overlays": 4, "then": "nothing"})
    rows = table(done, "seed-0/strip/detection.csv")
    assert list(rows[0]) == ["index", "label", "suspicion", "isolated", "is_poisoned"]
    assert sorted(int(row["index"]) for row in rows) == list(range(1437))
    scores = [float(row["suspicion"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    hits = [row for row in rows if row["isolated"] == "1" and row["is_poisoned"] == "1"]
    assert len(hits) / 144 == pytest.approx(number(done, "strip", "isolation_recall"))


def test_then_nothing_keeps_the_victim() -> None:
    done = defended(BADNETS, {"name": "activation_clustering", "then": "nothing"})
    assert (
        done.results["activation_clustering", 0]["clean_loss"] == done.results["undefended", 0]["clean_loss"]
    )


def table(recorder: MemoryRecorder, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(recorder.files[name].decode())))
