"""Defenses by name."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from app.specs.defenses.abl import Abl
from app.specs.defenses.abl_plus import AblPlus
from app.specs.defenses.asd import Asd
from app.specs.defenses.base import Defense
from app.specs.defenses.cbd import Cbd
from app.specs.defenses.confusion import ConfusionTraining
from app.specs.defenses.dbd import Dbd
from app.specs.defenses.detection import ActivationClustering, NeuralCleanse, SpectralSignatures, Strip
from app.specs.defenses.input_detection import IbdPsc, ScaleUp, SentiNet, StripInputs, Teco
from app.specs.defenses.inversion import BtiDbf
from app.specs.defenses.nab import Nab
from app.specs.defenses.pdb import Pdb
from app.specs.defenses.pruning import Bnp, Clp, Ep
from app.specs.defenses.purification import Asset, Beatrix, CognitiveDistillation, Flare, Scan, Spectre
from app.specs.defenses.reconstructive import Rnp
from app.specs.defenses.repair import Anp, FinePruning, FineTuning, FtSam, IBau, Mcr, Nad
from app.specs.defenses.sensitivity import DBr, DSt
from app.specs.defenses.sifting import MetaSift
from app.specs.defenses.tuning import FeTuning, Fst
from app.specs.defenses.unlearning import Npd, Sau
from app.specs.defenses.vab import Vab
from app.specs.plugins import with_plugins

_BUILT_IN = (
    Abl
    | AblPlus
    | FineTuning
    | FinePruning
    | Nad
    | Mcr
    | FtSam
    | Anp
    | IBau
    | Clp
    | Bnp
    | Ep
    | Rnp
    | Sau
    | Npd
    | BtiDbf
    | FeTuning
    | Fst
    | SpectralSignatures
    | ActivationClustering
    | Strip
    | NeuralCleanse
    | StripInputs
    | ScaleUp
    | IbdPsc
    | Teco
    | Flare
    | Scan
    | Spectre
    | Beatrix
    | CognitiveDistillation
    | SentiNet
    | Asset
    | MetaSift
    | ConfusionTraining
    | Nab
    | Cbd
    | Dbd
    | DSt
    | DBr
    | Asd
    | Pdb
    | Vab
)
if TYPE_CHECKING:
    DefenseSpec = _BUILT_IN
else:
    DefenseSpec = Annotated[with_plugins(_BUILT_IN, Defense), Field(discriminator="name")]
