"""The methods by the name that ``config.algorithm.name`` takes."""

from jaxmatch.algorithms.fixmatch import FixMatch
from jaxmatch.algorithms.pseudo_label import PseudoLabel
from jaxmatch.algorithms.supervised import Supervised

ALGORITHMS = {
    "supervised": Supervised,
    "pseudo_label": PseudoLabel,
    "fixmatch": FixMatch,
}
