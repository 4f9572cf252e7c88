"""Studies over HTTP, with tests in the worker's place: what is queued, what is reused, and the table."""

import csv
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.results.numbers.schemas import Aggregate
from app.specs.checks import find_problems
from app.specs.facts import BUILT_IN
from app.specs.study import StudySpec
from app.sweeps.matrix import find_worst
from app.sweeps.schemas import States, TableCell
from app.tables.experiments import Experiment
from app.tables.results import ArmNote, ResultValue
from app.tables.sweeps import Sweep
from tests.app.conftest import Service
from tests.app.people import people, submitted

SPEC: dict[str, Any] = {
    "name": "A study",
    "attacks": [
        {"attack": {"name": "badnets"}},
        {"attack": {"name": "badnets", "poisoning_rate": 0.05}, "label": "badnets 5 %"},
    ],
    "defenses": [{"name": "abl"}, {"name": "nad", "arm": "nad_1"}],
    "seeds": [0, 1],
    "tags": {"study": "tables"},
}
NUMBERS = {"clean": (0.95, 0.0), "undefended": (0.9, 1.0), "abl": (0.9, 0.0), "nad_1": (0.8, 0.2)}
EPOCHS = itertools.count(2)


def count(service: Service) -> int:
    with service.database.reading() as session:
        return session.scalar(select(func.count()).select_from(Experiment)) or 0


def study(service: Service, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = service.http.post("/v1/studies", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == answer.json()["links"]["self"]
    return answer.json()


def queued(service: Service, made: dict[str, Any]) -> list[dict[str, Any]]:
    """The study's queued experiments, the oldest first."""
    query = {"sweep": made["id"], "status": "queued", "order": "created_at", "fields": "*"}
    return service.http.get("/v1/experiments", params=query).json()["experiments"]


def run(service: Service, experiment: dict[str, Any], numbers: dict[str, tuple[float, float | None]]) -> None:
    """Play the worker: (clean accuracy, attack success) by arm; an arm without numbers fails."""
    spec, rows = experiment["spec"], []
    arms = [*numbers]
    for seed in spec["seeds"]:
        for arm in arms:
            for metric, value in zip(("clean_accuracy", "attack_success_rate"), numbers[arm], strict=True):
                rows.append(
                    ResultValue(
                        experiment_id=experiment["id"], arm=arm, seed=seed, metric=metric, value=value
                    )
                )
    service.add(*rows)
    service.end(experiment["id"])


def arms(experiment: dict[str, Any]) -> list[str]:
    spec = experiment["spec"]
    return [d["arm"] or d["name"] for d in spec["defenses"]]


def unique(**fields: Any) -> dict[str, Any]:
    """The spec with a recipe that no other test uses, so that nothing is reused by accident."""
    return {**SPEC, "training": {"epochs": next(EPOCHS)}, **fields}


def test_one_experiment_for_each_attack_and_seed(service: Service) -> None:
    made = study(service, unique())
    assert (made["cells"], made["reused"], made["status"]) == (2 * 4 * 2, 0, "queued")
    assert made["states"] == {
        "succeeded": 0,
        "running": 0,
        "queued": 16,
        "failed": 0,
        "canceled": 0,
        "missing": 0,
    }
    experiments = queued(service, made)
    where = [e["sweep"]["coordinates"] for e in experiments]
    assert where == [{"attack": a, "seed": s} for a in ("badnets", "badnets 5 %") for s in (0, 1)]
    for experiment in experiments:
        assert experiment["spec"]["seeds"] == [experiment["sweep"]["coordinates"]["seed"]]
        assert (arms(experiment), experiment["spec"]["reference"]) == (["abl", "nad_1"], True)
        assert experiment["spec"]["tags"] == {"study": "tables"}
        assert experiment["sweep"]["kind"] == "study"
    assert service.http.get(made["links"]["self"]).json() == made
    assert [s["id"] for s in service.http.get("/v1/studies?limit=1").json()["studies"]] == [made["id"]]
    assert service.http.get(f"/v1/sweeps/{made['id']}").status_code == 404


def test_only_what_is_not_there_is_queued(service: Service) -> None:
    body = unique()
    alone = service.submit(
        {
            "training": body["training"],
            "attack": {"name": "badnets"},
            "defenses": [{"name": "nad"}],
            "seeds": [1, 2],
        }
    )
    run(service, alone, {"undefended": (0.9, 1.0), "nad": (0.8, 0.1)})
    before = count(service)
    dry = service.http.post("/v1/studies:validate", json=body).json()
    assert (dry["cells"], dry["reused"], dry["experiments"]) == (16, 2, 4)
    made = study(service, body)
    assert (made["reused"], made["states"]["succeeded"], made["states"]["queued"]) == (2, 2, 14)
    experiments = queued(service, made)
    assert count(service) == before + 4
    planned = [service.http.post("/v1/experiments:validate", json=e["spec"]).json() for e in experiments]
    assert dry["stages"] == len({stage["key"] for one in planned for stage in one["stages"]})
    partly = next(e for e in experiments if e["sweep"]["coordinates"] == {"attack": "badnets", "seed": 1})
    assert (arms(partly), partly["spec"]["reference"]) == (["abl"], True)
    rows = service.http.get(made["links"]["table"]).json()["rows"]
    cell = rows[0]["cells"][3]
    assert (cell["arm"], cell["attack_success_rate"]["mean"]) == ("nad_1", 0.1)
    assert alone["id"] in cell["experiments"]

    for experiment in experiments:
        run(service, experiment, NUMBERS)
    done = service.http.get(made["links"]["self"]).json()
    assert (done["status"], done["states"]["succeeded"], done["fraction"]) == ("succeeded", 16, 1.0)

    again = study(service, {**body, "name": "The same under another name"})
    assert (again["status"], again["reused"], again["states"]["succeeded"]) == ("succeeded", 16, 16)
    larger = study(service, {**body, "seeds": [0, 1, 2], "reference": False})
    assert (larger["reused"], larger["states"]["queued"]) == (12 + 2, 4)


def test_extending_queues_only_what_is_new(service: Service) -> None:
    made = study(service, unique())
    for experiment in queued(service, made):
        run(service, experiment, NUMBERS)
    more = {"defenses": [{"name": "fine_tuning"}], "attacks": [{"attack": {"name": "none"}}]}
    answer = service.http.post(made["links"]["extend"], json=more)
    assert answer.status_code == 202
    assert [d["name"] for d in answer.json()["spec"]["defenses"]] == ["abl", "nad", "fine_tuning"]
    assert answer.json()["cells"] == 2 * 5 * 2 + 4 * 2
    experiments = queued(service, made)
    assert [(e["spec"]["attack"]["name"], arms(e), e["spec"]["reference"]) for e in experiments] == [
        ("badnets", ["fine_tuning"], False),
        ("badnets", ["fine_tuning"], False),
        ("badnets", ["fine_tuning"], False),
        ("badnets", ["fine_tuning"], False),
        ("none", ["abl", "nad_1", "fine_tuning"], True),
        ("none", ["abl", "nad_1", "fine_tuning"], True),
    ]
    before = count(service)
    assert service.http.post(made["links"]["extend"], json=more).json() == answer.json()
    assert count(service) == before

    taken = {"attacks": [{"attack": {"name": "sig"}, "label": "badnets"}]}
    wrong = {"attacks": [{"attack": {"name": "sig", "target_class": 12}}]}
    for body, words in (
        (taken, "in the extended study"),
        (wrong, "0 to 9"),
        ({"epochs": 1}, "unknown field"),
    ):
        refused = service.http.post(made["links"]["extend"], json=body)
        assert (refused.status_code, words in refused.json()["detail"]) == (422, True)
    assert service.http.get(made["links"]["self"]).json() == answer.json()


def test_what_was_deleted_is_missing_until_it_is_filled_again(service: Service) -> None:
    made = study(service, unique(seeds=[0], attacks=[{"attack": {"name": "blend"}}]))
    (experiment,) = queued(service, made)
    service.http.delete(experiment["links"]["self"])
    found = service.http.get(made["links"]["self"]).json()
    assert found["states"]["missing"] == found["cells"] == 4
    assert service.http.post(made["links"]["extend"], json={}).json()["states"]["queued"] == 4
    assert len(queued(service, made)) == 1


def test_only_failed_cells_are_retried_and_the_table_says_which(service: Service) -> None:
    made = study(service, unique(seeds=[0]))
    first, second = queued(service, made)
    run(service, first, {"clean": (0.9, 0.0), "undefended": (0.9, 1.0), "abl": (0.9, 0.0)})
    service.add(ArmNote(experiment_id=first["id"], arm="nad_1", seed=0, kind="error", message="bad"))
    service.http.post(f"/v1/experiments/{second['id']}:cancel")
    states = service.http.get(made["links"]["self"]).json()["states"]
    assert (states["succeeded"], states["failed"], states["canceled"]) == (3, 1, 4)
    page = service.http.get(made["links"]["table"] + "?format=markdown").text.splitlines()
    assert page[4].endswith("| 90.0 / 0.0 / 100.0 | failed |")
    assert page[5] == "| badnets 5 % | canceled | canceled | canceled | canceled |"
    assert page[6] == "| average | - | - | - | - |"
    again = service.http.post(made["links"]["retry"]).json()
    assert (again["experiments"]["queued"], again["experiments"]["canceled"]) == (1, 1)
    assert again["states"]["queued"] == 1  # the other three arms have their numbers
    canceled = service.http.post(made["links"]["cancel"]).json()
    assert canceled["experiments"]["canceled"] == 2
    assert service.http.post(made["links"]["retry"] + "?state=canceled").json()["experiments"]["queued"] == 2


def test_deleting_leaves_what_another_study_uses(service: Service) -> None:
    body = unique(seeds=[0])
    made = study(service, body)
    first, second = queued(service, made)
    run(service, first, NUMBERS)
    other = study(service, {**body, "attacks": body["attacks"][:1]})
    assert other["reused"] == 4
    assert service.http.delete(made["links"]["self"]).status_code == 204
    assert service.http.get(first["links"]["self"]).json()["sweep"] is None
    assert service.http.get(second["links"]["self"]).status_code == 404
    assert service.http.get(other["links"]["self"]).json()["states"]["succeeded"] == 4
    assert service.http.delete(other["links"]["self"]).status_code == 204
    assert service.http.get(first["links"]["self"]).status_code == 200  # it was not this study's own


@pytest.fixture(scope="module")
def finished(service: Service) -> dict[str, Any]:
    """A study with two seeds, a warning, and a row without an attack."""
    body = unique(
        attacks=[{"attack": {"name": "badnets"}, "label": "bad_nets & <co>"}, {"attack": {"name": "none"}}]
    )
    made = study(service, {**body, "defenses": body["defenses"][:1]})
    numbers = {
        ("badnets", 0): {"clean": (0.98, 0.01), "undefended": (0.9, 1.0), "abl": (0.9, 0.0)},
        ("badnets", 1): {"clean": (0.96, 0.03), "undefended": (0.9, 1.0), "abl": (0.8, 0.2)},
        ("none", 0): {"clean": (0.98, None), "abl": (0.97, None)},
    }
    for experiment in queued(service, made):
        key = (experiment["spec"]["attack"]["name"], experiment["spec"]["seeds"][0])
        if key in numbers:
            run(service, experiment, numbers[key])
    warned = next(
        e
        for e in service.http.get(made["links"]["experiments"] + "&fields=id,sweep").json()["experiments"]
        if e["sweep"]["coordinates"] == {"attack": "bad_nets & <co>", "seed": 0}
    )
    service.add(
        *(ArmNote(experiment_id=warned["id"], arm="abl", seed=0, kind="warning", message=m) for m in "ab")
    )
    return made


def test_the_preset_bench_fills_what_is_omitted(service: Service) -> None:
    small = {
        "dataset": {"name": "digits"},
        "model": {"name": "small_cnn"},
        "training": {"epochs": next(EPOCHS)},
    }
    one = {"attacks": [{"attack": {"name": "badnets"}}]}
    made = study(service, {"preset": "bench", **small, **one})
    assert (made["name"], made["spec"]["preset"], made["spec"]["dataset"]["name"]) == (
        "bench",
        "bench",
        "digits",
    )
    assert {"abl", "nad", "spectral_signatures"} <= {d["name"] for d in made["spec"]["defenses"]}
    assert made["cells"] == 2 + len(made["spec"]["defenses"])
    answer = service.http.post("/v1/studies", json=small)
    assert answer.status_code == 422
    assert [e["field"] for e in answer.json()["errors"]] == ["attacks"]


def test_the_preset_bench_has_the_settings_of_the_leaderboard() -> None:
    spec = StudySpec.model_validate({"preset": "bench"})
    assert (spec.dataset.name, spec.model.name, spec.training.epochs) == ("cifar10", "preact_resnet18", 100)
    methods = [*(a.attack for a in spec.attacks), *spec.defenses]
    for method in methods:
        if "benchmark" in getattr(method, "presets", {}):
            assert method.model_dump()["preset"] == "benchmark"
    assert StudySpec.model_validate(spec.model_dump(mode="json")) == spec
    for row in spec.attacks:  # every cell can run
        cells = spec.experiment(row, seeds=spec.seeds, defenses=spec.defenses, reference=True)
        assert find_problems(cells, BUILT_IN["cifar10"]) == []
    assert not bool({"abl_plus", "none", "given"} & {m.name for m in methods})


def test_the_table_as_json(service: Service, finished: dict[str, Any]) -> None:
    table = service.http.get(finished["links"]["table"]).json()
    assert (table["seeds"], table["arms"]) == ([0, 1], ["clean", "undefended", "abl"])
    attacked, clean = table["rows"]
    assert (attacked["attack"], clean["attack"]) == ("bad_nets & <co>", "none")
    _, undefended, abl = attacked["cells"]
    assert abl["clean_accuracy"]["mean"] == pytest.approx(0.85)
    assert abl["clean_accuracy"]["high"] == pytest.approx(0.85 + 12.7062 * 0.05, abs=1e-4)
    # (1 - 0 + 1) / 2 for the first seed, (0.8 - 0.1 + 1) / 2 for the second.
    assert abl["defense_effectiveness"]["mean"] == pytest.approx((1 + 0.85) / 2)
    assert (abl["warnings"], abl["states"]["succeeded"]) == (2, 2)
    assert undefended["defense_effectiveness"] is None
    assert [c["states"]["succeeded"] for c in clean["cells"]] == [1, 0, 1]
    assert clean["cells"][2]["attack_success_rate"] is None
    assert table["averages"][2]["defense_effectiveness"]["mean"] == pytest.approx(0.925)
    assert table["worst"][2] == {
        "arm": "abl",
        "attack": "bad_nets & <co>",
        **{name: abl[name] for name in ("clean_accuracy", "attack_success_rate", "defense_effectiveness")},
    }


def test_the_worst_case_takes_each_number_from_its_own_attack() -> None:
    def cell(accuracy: float, success: float, effectiveness: float) -> TableCell:
        numbers = {
            "clean_accuracy": accuracy,
            "attack_success_rate": success,
            "defense_effectiveness": effectiveness,
        }
        return TableCell(
            arm="abl",
            states=States(),
            warnings=0,
            experiments=[],
            **{name: Aggregate.of([value]) for name, value in numbers.items()},
        )

    column = {"blend": cell(0.8, 0.9, 0.5), "sig": cell(0.7, 0.1, 0.9)}
    worst = find_worst("abl", column)
    assert worst.attack == "blend"
    assert [
        n.mean for n in (worst.clean_accuracy, worst.attack_success_rate, worst.defense_effectiveness) if n
    ] == [
        0.7,
        0.9,
        0.5,
    ]
    column["wanet"] = column["sig"].model_copy(update={"attack_success_rate": None})
    assert find_worst("abl", column).attack is None  # not every attack has a value


CAPTION = (
    "A study: clean accuracy / attack success rate / defense effectiveness, in percent; "
    "mean and half the 95 % interval over seeds 0, 1."
)
HEAD = ["attack", "clean", "undefended", "abl"]
ABL = "85.0 ± 63.5 / 10.0 ± 127.1 / 92.5 ± 95.3 (2 warnings)"
ROWS = [
    ["bad_nets & <co>", "97.0 ± 12.7 / 2.0 ± 12.7", "90.0 ± 0.0 / 100.0 ± 0.0", ABL],
    ["none", "98.0 / - (1 of 2 seeds; 1 queued)", "", "97.0 / - (1 of 2 seeds; 1 queued)"],
    ["average", "97.0 / 2.0", "90.0 / 100.0", "85.0 / 10.0 / 92.5"],
    ["worst", "97.0 ± 12.7 / 2.0 ± 12.7", "90.0 ± 0.0 / 100.0 ± 0.0", ABL.removesuffix(" (2 warnings)")],
]


def lines(rows: list[list[str]], start: str, between: str, end: str) -> str:
    return "".join(start + between.join(row) + end + "\n" for row in rows)


def in_html(rows: list[list[str]]) -> str:
    return "".join(
        f'<tr><th scope="row">{first}</th><td>{"</td><td>".join(rest)}</td></tr>\n' for first, *rest in rows
    )


TEXTS = {
    "markdown": f"{CAPTION}\n\n"
    + lines([HEAD, ["---"] * 4, *ROWS], "| ", " | ", " |").replace("<co>", "\\<co\\>"),
    "latex": f"% {CAPTION}\n\\begin{{tabular}}{{llll}}\n\\toprule\n"
    + lines([HEAD], "", " & ", " \\\\")
    + "\\midrule\n"
    + lines(ROWS, "", " @ ", " \\\\")
    .replace("bad_nets & <co>", "bad\\_nets \\& \\textless{}co\\textgreater{}")
    .replace("±", "$\\pm$")
    .replace("@", "&")
    + "\\bottomrule\n\\end{tabular}\n",
    "html": '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>A study</title></head>\n'
    f"<body>\n<table>\n<caption>{CAPTION}</caption>\n"
    f'<thead><tr>{"".join(f"""<th scope="col">{name}</th>""" for name in HEAD)}</tr></thead>\n<tbody>\n'
    + in_html(ROWS).replace("& <co>", "&amp; &lt;co&gt;")
    + "</tbody>\n</table>\n</body>\n</html>\n",
}


def test_names_are_text_in_every_format(service: Service) -> None:
    name, label = "# [x](http://a.b)\x1b[2J\u202e <b>", "=HYPERLINK(1)"
    made = study(service, {"name": name, "attacks": [{"attack": {"name": "sig"}, "label": label}]})
    texts = {
        format: service.http.get(made["links"]["table"], params={"format": format}).text
        for format in ("csv", "markdown", "latex", "html")
    }
    assert not any("\x1b" in texts[format] or "\u202e" in texts[format] for format in texts)
    assert texts["csv"].splitlines()[1].startswith("'=HYPERLINK(1),")
    assert texts["markdown"].startswith(r"\# \[x\](http://a.b)\\x1b\[2J\\u202e \<b\>: clean accuracy")
    assert texts["latex"].startswith("% # [x](http://a.b)")
    assert "<b>" not in texts["html"]


@pytest.mark.parametrize("kind", TEXTS)
def test_the_table_as_a_page(service: Service, finished: dict[str, Any], kind: str) -> None:
    media = {"markdown": "text/markdown", "latex": "application/x-tex", "html": "text/html"}[kind]
    by_format = service.http.get(finished["links"]["table"], params={"format": kind})
    by_header = service.http.get(finished["links"]["table"], headers={"Accept": media})
    assert by_format.text == by_header.text == TEXTS[kind]
    assert by_format.headers["content-type"].partition(";")[0] == media


def test_the_table_as_csv(service: Service, finished: dict[str, Any]) -> None:
    text = service.http.get(finished["links"]["table"], headers={"Accept": "text/csv"}).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(r["attack"], r["arm"]) for r in rows] == [
        ("bad_nets & <co>", "clean"),
        ("bad_nets & <co>", "undefended"),
        ("bad_nets & <co>", "abl"),
        ("none", "clean"),
        ("none", "abl"),
    ]
    abl = rows[2]
    assert (abl["seeds"], abl["succeeded"], abl["queued"], abl["warnings"]) == ("2", "2", "0", "2")
    assert float(abl["attack_success_rate_mean"]) == 0.1
    assert float(abl["defense_effectiveness_mean"]) == pytest.approx(0.925)
    assert (rows[3]["queued"], rows[3]["attack_success_rate_mean"], rows[3]["clean_accuracy_low"]) == (
        "1",
        "",
        "",
    )


BAD = [
    ({"attacks": [{"attack": {"name": "zap"}}]}, "attacks[0].attack.name"),
    (
        {"attacks": [{"attack": {"name": "sig"}}, {"attack": {"name": "badnets", "target_class": 12}}]},
        "attacks[1].attack.target_class",
    ),
    ({"attacks": [{"attack": {"name": "sig"}}], "defenses": [{"name": "abl", "arm": "clean"}]}, "defenses"),
    (
        {"attacks": [{"attack": {"name": "sig"}}], "dataset": {"name": "digits", "train_size": 5000}},
        "dataset.train_size",
    ),
    ({"attacks": [{"attack": {"name": "sig"}}, {"attack": {"name": "sig"}}]}, "body"),
    (
        {
            "attacks": [{"attack": {"name": "sig", "amplitude": i + 1}, "label": f"a{i}"} for i in range(20)],
            "seeds": list(range(30)),
        },
        "attacks",
    ),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=[b[1] for b in BAD])
def test_nothing_is_queued_if_any_cell_is_wrong(service: Service, body: dict[str, Any], field: str) -> None:
    before = count(service)
    for path in ("/v1/studies:validate", "/v1/studies"):
        answer = service.http.post(path, json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == field
    assert count(service) == before


def test_a_study_whose_plug_in_is_gone_can_be_read(service: Service) -> None:
    made = study(service, unique())
    run(service, queued(service, made)[0], NUMBERS)
    attacks = [{"attack": {"name": "gone", "levels": 3}, "label": "badnets"}, *made["spec"]["attacks"][1:]]
    defenses = [made["spec"]["defenses"][0], {"name": "also_gone", "arm": "nad_1"}]
    spec = {**made["spec"], "attacks": attacks, "defenses": defenses}
    with service.database.writing() as session:
        session.execute(update(Sweep).where(Sweep.id == made["id"]).values(spec=spec))
    assert service.http.get(made["links"]["self"]).json()["spec"] == spec
    table = service.http.get(made["links"]["table"]).json()
    assert table["arms"] == ["clean", "undefended", "abl", "nad_1"]
    assert [row["attack"] for row in table["rows"]] == ["badnets", "badnets 5 %"]
    assert table["rows"][0]["cells"][2]["clean_accuracy"]["mean"] == 0.9
    assert "clean accuracy" in service.http.get(f"{made['links']['table']}?format=markdown").text
    page = service.http.get(f"/studies/{made['id']}")
    assert (page.status_code, "CA 90.0 %" in page.text, '"levels": 3' in page.text.replace("&#34;", '"')) == (
        200,
        True,
        True,
    )
    assert service.http.get("/sweeps").status_code == 200
    refused = service.http.post(made["links"]["extend"], json={"seeds": [7]})
    assert refused.status_code == 409
    assert "no plug-in defines also_gone, gone; put its file back" in refused.json()["detail"]
    assert service.http.post(made["links"]["cancel"]).status_code == 202
    assert service.http.delete(made["links"]["self"]).status_code == 204


def test_an_unknown_id_is_a_404_everywhere(service: Service) -> None:
    here = "/v1/studies/01900000-0000-7000-8000-000000000000"
    answers = [service.http.get(here), service.http.get(f"{here}/table"), service.http.delete(here)]
    answers += [service.http.post(here + path) for path in (":cancel", ":retry")]
    answers.append(service.http.post(f"{here}:extend", json={}))
    assert [a.status_code for a in answers] == [404] * 6


def test_the_same_key_gives_the_first_answer_again(service: Service) -> None:
    body = unique()
    first = study(service, body, **{"Idempotency-Key": "a study"})
    again = service.http.post("/v1/studies", json=body, headers={"Idempotency-Key": "a study"})
    assert (again.json(), again.headers["Idempotency-Replayed"]) == (first, "true")


def test_a_study_that_needs_nothing_new_passes_a_full_quota(tmp_path: Path) -> None:
    spec = {"attack": {"name": "sig"}, "training": {"epochs": 2}}
    body = {"attacks": [{"attack": {"name": "sig"}}], "training": {"epochs": 2}, "reference": False}
    with people(tmp_path, quota_queued=1) as made:
        ann = made.of("ann")
        experiment = submitted(ann, **spec)
        value = ResultValue(
            experiment_id=experiment, arm="undefended", seed=0, metric="clean_accuracy", value=0.9
        )
        made.service.add(value)
        made.service.end(experiment)
        submitted(ann)
        assert ann.post("/v1/studies", json={**body, "seeds": [1]}).status_code == 429
        assert ann.post("/v1/studies", json=body).json()["reused"] == 1


def test_an_unknown_parameter_is_refused(service: Service) -> None:
    answer = service.http.get("/v1/studies?limitt=3")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "limitt")
    assert "did you mean limit" in answer.json()["detail"]
