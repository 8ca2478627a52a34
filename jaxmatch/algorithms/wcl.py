"""WCL: nearest neighbors within the batch share a weak label.

Zheng et al., "Weakly Supervised Contrastive Learning", ICCV 2021,
https://arxiv.org/abs/2110.04770.
"""

from jaxmatch.algorithms.simclr import found
from jaxmatch.functional.diagnostics import feature_spread
from jaxmatch.functional.graphs import connected_components, nearest_neighbor
from jaxmatch.functional.losses import nt_xent, supervised_contrastive
from jaxmatch.functional.similarity import normalize
from jaxmatch.models.heads import DeepProjection
from jaxmatch.settings import Count, Positive, section
from jaxmatch.types import Algorithm, Array, Heads, Inputs, Update


@section("algorithm")
class WCL(Algorithm):
    """The loss is SimCLR's of one head and a supervised contrastive one of another.

    Both run over the global batch, and gradients reach all embeddings; in the authors' code those
    of other devices are constants. The authors did not release the multi-crops of nearest
    neighbors of the paper; they are not here.

    Attributes:
        temperature: tau of the similarities in both losses.
        projection: width of the embeddings of each head.
        hidden: width of the two hidden layers of each head.
    """

    temperature: Positive = 0.1
    projection: Count = 128
    hidden: Count = 2048

    labeled = ()
    unlabeled = ("contrast", "contrast")
    evaluated = "student"

    @property
    def heads(self) -> Heads:
        """The heads g for the first loss and h for the second."""
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
