"""The methods, one file a paper, by the name that ``config.algorithm.name`` takes.

What several methods share is in :mod:`jaxmatch.functional`.
"""

from collections.abc import Mapping
from typing import Any

from jaxmatch.algorithms.adamatch import AdaMatch
from jaxmatch.algorithms.byol import BYOL
from jaxmatch.algorithms.comatch import CoMatch
from jaxmatch.algorithms.dash import Dash
from jaxmatch.algorithms.distillation import Distillation
from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.algorithms.fixmatch_eman import FixMatchEMAN
from jaxmatch.algorithms.flexmatch import FlexMatch
from jaxmatch.algorithms.freematch import FreeMatch
from jaxmatch.algorithms.iomatch import IOMatch
from jaxmatch.algorithms.mean_teacher import MeanTeacher
from jaxmatch.algorithms.mixmatch import MixMatch
from jaxmatch.algorithms.moco_v2 import MoCoV2
from jaxmatch.algorithms.pcl import PCL
from jaxmatch.algorithms.pi_model import PiModel
from jaxmatch.algorithms.pseudo_label import PseudoLabel
from jaxmatch.algorithms.remixmatch import ReMixMatch
from jaxmatch.algorithms.s4l_rotation import S4LRotation
from jaxmatch.algorithms.simclr import SimCLR
from jaxmatch.algorithms.simclr_v2 import SimCLRv2
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.algorithms.simmatch_v2 import SimMatchV2
from jaxmatch.algorithms.softmatch import SoftMatch
from jaxmatch.algorithms.supervised import Supervised
from jaxmatch.algorithms.swav import SwAV
from jaxmatch.algorithms.temporal_ensembling import TemporalEnsembling
from jaxmatch.algorithms.uda import UDA
from jaxmatch.algorithms.vat import VAT
from jaxmatch.algorithms.wcl import WCL
from jaxmatch.errors import InputError, suggest
from jaxmatch.settings import build_section
from jaxmatch.types import Algorithm

ALGORITHMS = {
    "supervised": Supervised,
    "pi_model": PiModel,
    "temporal_ensembling": TemporalEnsembling,
    "mean_teacher": MeanTeacher,
    "pseudo_label": PseudoLabel,
    "vat": VAT,
    "uda": UDA,
    "s4l_rotation": S4LRotation,
    "mixmatch": MixMatch,
    "remixmatch": ReMixMatch,
    "fixmatch": FixMatch,
    "dash": Dash,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "softmatch": SoftMatch,
    "adamatch": AdaMatch,
    "fixmatch_eman": FixMatchEMAN,
    "iomatch": IOMatch,
    "simmatch": SimMatch,
    "simmatch_v2": SimMatchV2,
    "comatch": CoMatch,
    "simclr": SimCLR,
    "simclr_v2": SimCLRv2,
    "moco_v2": MoCoV2,
    "byol": BYOL,
    "pcl": PCL,
    "wcl": WCL,
    "swav": SwAV,
    "distillation": Distillation,
}


def build_algorithm(values: Mapping[str, Any]) -> Algorithm:
    """The method of ``config.algorithm``: its name and its settings.

    Raises:
        InputError: on an unknown name, an unknown setting or a value that a setting does not take.
    """
    settings = dict(values)
    name = settings.pop("name")
    if name not in ALGORITHMS:
        raise InputError(f"unknown algorithm {name!r}; {suggest(name, ALGORITHMS)}")
    return build_section(ALGORITHMS[name], settings, "algorithm")
