"""WCL: images that are each other's nearest neighbors share a weak label of the other view.

Zheng et al., "Weakly Supervised Contrastive Learning", ICCV 2021,
https://arxiv.org/abs/2110.04770.
"""

from collections.abc import Mapping
from typing import Any

from jaxmatch.algorithms.simclr import found
from jaxmatch.functional.diagnostics import feature_spread
from jaxmatch.functional.graphs import connected_components, nearest_neighbor
from jaxmatch.functional.losses import nt_xent, supervised_contrastive
from jaxmatch.functional.similarity import normalize
from jaxmatch.models.heads import DeepProjection
from jaxmatch.settings import Count, Positive, section
from jaxmatch.types import Algorithm, Array, Inputs, Update


@section("algorithm")
class WCL(Algorithm):
    """The loss is SimCLR's of one head and a supervised contrastive one of another.

    Both are over the global batch, and gradients reach all embeddings; the authors take those of
    other devices as constants. The paper's k-NN multi-crops, which the authors did not release, are
    left out.

    Attributes:
        temperature: tau of the similarities in both.
        projection: width of the embeddings of each head.
        hidden: width of the two layers before.
    """

    temperature: Positive = 0.1
    projection: Count = 128
    hidden: Count = 2048

    labeled = ()
    unlabeled = ("contrast", "contrast")
    evaluated = "student"

    @property
    def heads(self) -> Mapping[str, Any]:
        """g, which tells images apart, and h, which tells weak labels apart."""
        head = DeepProjection(layers=3, features=self.projection, hidden=self.hidden, bias=True)
        return {"projection": head, "graph": head}

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """NT-Xent of g + (SupCon(h_1, labels of h_2) + SupCon(h_2, labels of h_1)) / 2.

        The labels of a view are the connected components of the graph in which each image has an
        edge to its nearest neighbor within the view (section 3.2).
        """
        outputs, stats = given.student(given.unlabeled.views)
        first, second = (normalize(output.heads["projection"]) for output in outputs)  # [b d]
        left, right = (normalize(output.heads["graph"]) for output in outputs)  # [b d]
        on_left, on_right = (connected_components(nearest_neighbor(h)) for h in (left, right))
        contrastive = nt_xent(first, second, self.temperature).mean()
        graph = supervised_contrastive(left, on_right, self.temperature).mean() / 2
        graph += supervised_contrastive(right, on_left, self.temperature).mean() / 2
        return contrastive + graph, Update(
            stats,
            {
                "loss/contrastive": contrastive,
                "loss/graph": graph,
                "contrastive/accuracy": found(first, second).mean(),
                **feature_spread(first),
            },
        )
