"""ABL that isolates poison by a test instead of a rate, and leaves clean data alone."""

from typing import Any, Literal

from app.specs.defenses.base import VICTIM, Defense


class AblPlus(Defense):
    """A method of this project: finds poison without a clean set and without the rate, target class or trigger.

    A model is trained on everything. Three signs that it shows (whether a sample keeps its label under other images,
    how unlikely its activations are, its place among the features of its class) together divide a poisoned class in
    two. Two more models, each of which never saw one of the two sides, are asked about it: the clean members of a class
    explain each other, poison is explained by nothing but itself. If a side is poison by this test, a final model is
    trained against the label on half of it and without the rest of it. If no side is, the result is the first model,
    which is the undefended one. Another model is trained with decoys, triggers of the defense's own, and says which of
    them would have been noticed in this set. There is nothing to set: all models have the experiment's recipe.
    """

    name: Literal["abl_plus"] = "abl_plus"

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [
            (VICTIM, {}, 30),
            # Not fields: what earlier versions of the method stored has another sign, accuses other sides, or was
            # followed by unlearning.
            ("signs", {"signs": "sharpened"}, 1),
            ("smaller_sides", {"divided": "at least three classes"}, 30),
            ("larger_sides", {"divided": "at least three classes"}, 30),
            ("power", {"accused": "dominant and learned, or claimed by many"}, 30),
            ("verdict", {}, 1),
            ("training", {"unlearned": False}, 30),
        ]
