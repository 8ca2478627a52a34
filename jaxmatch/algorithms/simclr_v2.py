"""SimCLR v2: SimCLR with a deeper head, of which fine-tuning may keep the first layer.

Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020,
https://arxiv.org/abs/2006.10029.
"""

from jaxmatch.algorithms.simclr import contrastive_loss
from jaxmatch.models.heads import DeepProjection
from jaxmatch.settings import Count, Positive, section
from jaxmatch.types import Algorithm, Array, Heads, Inputs, Update


@section("algorithm")
class SimCLRv2(Algorithm):
    """The loss is SimCLR's, over the global batch; no label is read.

    The paper also has a memory of the embeddings of a teacher, which gains about a point; the
    authors did not release it, and it is not here.

    Attributes:
        temperature: tau of the similarities.
        projection: width of the embeddings.
    """

    temperature: Positive = 0.1
    projection: Count = 128

    labeled = ()
    unlabeled = ("contrast", "contrast")
    evaluated = "student"

    @property
    def heads(self) -> Heads:
        """The projection head g, three layers with BatchNorm; fine-tuning may keep the first."""
        return {"projection": DeepProjection(layers=3, features=self.projection, last_norm=True)}

    def objective(self, given: Inputs) -> tuple[Array, Update]:
        """See :func:`jaxmatch.algorithms.simclr.contrastive_loss`."""
        return contrastive_loss(given, self.temperature)
