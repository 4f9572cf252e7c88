"""Defenses by name. A defense's results appear under its arm, by default the defense's name."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from app.specs.defenses.abl import Abl
from app.specs.defenses.abl_plus import AblPlus
from app.specs.defenses.base import Defense
from app.specs.defenses.detection import ActivationClustering, NeuralCleanse, SpectralSignatures, Strip
from app.specs.defenses.nab import Nab
from app.specs.defenses.repair import Anp, FinePruning, FineTuning, FtSam, IBau, Mcr, Nad
from app.specs.plugins import extended

_OURS = (
    Abl
    | AblPlus
    | FineTuning
    | FinePruning
    | Nad
    | Mcr
    | FtSam
    | Anp
    | IBau
    | SpectralSignatures
    | ActivationClustering
    | Strip
    | NeuralCleanse
    | Nab
)
if TYPE_CHECKING:
    DefenseSpec = _OURS
else:
    DefenseSpec = Annotated[extended(_OURS, Defense), Field(discriminator="name")]
