"""The methods by the name that ``config.algorithm.name`` takes."""

from jaxmatch.algorithms.comatch import CoMatch
from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.algorithms.fixmatch_eman import FixMatchEMAN
from jaxmatch.algorithms.pseudo_label import PseudoLabel
from jaxmatch.algorithms.simclr import SimCLR
from jaxmatch.algorithms.simmatch import SimMatch
from jaxmatch.algorithms.simmatch_v2 import SimMatchV2
from jaxmatch.algorithms.supervised import Supervised

ALGORITHMS = {
    "supervised": Supervised,
    "pseudo_label": PseudoLabel,
    "fixmatch": FixMatch,
    "fixmatch_eman": FixMatchEMAN,
    "simmatch": SimMatch,
    "simmatch_v2": SimMatchV2,
    "comatch": CoMatch,
    "simclr": SimCLR,
}
