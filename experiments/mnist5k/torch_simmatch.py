"""SimMatch in plain PyTorch, at CIFAR scale: the network with its head, and the loss with its bank.

Zheng et al., "SimMatch: Semi-supervised Learning with Similarity Matching", CVPR 2022,
https://arxiv.org/abs/2203.06915. One projection head and a bank of unit rows, as published. USB's
code averages three heads and normalises what enters the bank over the batch, which ``heads`` and
``over_batch`` do here. Written for :mod:`experiments.mnist5k.torch_runs`.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from experiments.throughput.torch_fixmatch import WideResNet


class WithEmbeddings(WideResNet):
    """The network with a projection head; in training it gives logits [b C] and embeddings."""

    def __init__(
        self,
        model: Mapping[str, Any],
        classes: int,
        in_place: bool,
        projection: int,
        heads: int = 1,
    ):
        """Embeddings are the mean of ``heads`` heads, of width ``projection``."""
        super().__init__(model, classes, in_place)
        width = self.classifier.in_features
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection))
            for _ in range(heads)
        )

    def forward(self, x: Any) -> Any:
        """Logits, in training with unit embeddings [b projection]."""
        features = self.features(x)
        logits = self.classifier(features)
        if not self.training:
            return logits
        embeddings = torch.stack([head(features) for head in self.projections]).mean(0)
        return logits, F.normalize(embeddings)


class Objective:
    """The loss of a step; it keeps the labeled images' embeddings and the last mean predictions.

    In the place of its label a labeled image has its number in the labeled set.

    Attributes:
        labels: [n], of the labeled set.
        bank: unit embeddings [n d].
        filled: which rows of the bank have been written, [n].
        history: the mean predictions [C] of the last batches.
        step: the number of steps taken.
    """

    def __init__(
        self, labels: Any, classes: int, algorithm: Mapping[str, Any], over_batch: bool = False
    ):
        """Begin with an empty bank; ``algorithm`` as ``config.algorithm``."""
        self.labels, self.classes, self.step = labels, classes, 0
        self.over_batch = over_batch
        self.bank = torch.zeros(len(labels), algorithm["projection"])
        self.filled = torch.zeros(len(labels), dtype=torch.bool)
        self.history: deque[Any] = deque(maxlen=algorithm["alignment_length"])

    def __call__(
        self,
        model: Any,
        x: Any,
        index: Any,
        weak: Any,
        strong: Any,
        algorithm: Mapping[str, Any],
        split: bool,
    ) -> tuple[Any, Any]:
        """The loss, and the share of weak views with a confident pseudo-label.

        Raises:
            ValueError: with ``split``: all views have one pass.
        """
        if split:
            raise ValueError("SimMatch's views have one pass")
        parts = [len(x), len(weak), len(strong)]
        (on_x, on_weak, on_strong), (z_x, z_weak, z_strong) = (
            outputs.split(parts) for outputs in model(torch.cat([x, weak, strong]))
        )
        ready = self.step >= algorithm["instance_start_step"] and bool(self.filled.any())
        with torch.no_grad():
            prediction = torch.softmax(on_weak, 1)
            self.history.append(prediction.mean(0))
            prediction = prediction / torch.stack(list(self.history)).mean(0)
            prediction = prediction / prediction.sum(1, keepdim=True)
            target = unfolded = prediction
            if ready:
                similarity = self.similarity(z_weak, algorithm).exp()
                unfolded = similarity * prediction[:, self.labels]
                unfolded = unfolded / unfolded.sum(1, keepdim=True)
                votes = torch.zeros_like(prediction).index_add(1, self.labels, similarity)
                share = algorithm["smoothing"]
                target = share * prediction + (1 - share) * votes
            confident = target.max(1).values.ge(algorithm["threshold"]).float()
        errors = -(target * torch.log_softmax(on_strong, 1)).sum(1)
        loss = F.cross_entropy(on_x, self.labels[index])
        loss = loss + algorithm["unlabeled_weight"] * (errors * confident).mean()
        if ready:
            instance = -(unfolded * self.similarity(z_strong, algorithm))[:, self.filled].sum(1)
            loss = loss + algorithm["instance_weight"] * instance.mean()
        self.remember(index, z_x.detach(), algorithm["bank_momentum"])
        self.step += 1
        return loss, confident.mean()

    def similarity(self, embeddings: Any, algorithm: Mapping[str, Any]) -> Any:
        """The log of the similarities to the filled rows of the bank, which sum to 1, [b n]."""
        scores = embeddings @ self.bank.T / algorithm["temperature"]
        return torch.log_softmax(scores.masked_fill(~self.filled, -torch.inf), 1)

    def remember(self, index: Any, embeddings: Any, momentum: float) -> None:
        """Average the embeddings into the bank; of equal indices the last one counts.

        With ``over_batch`` each feature of the averages is normalised over the batch, in place of
        each row over its features.
        """
        if self.over_batch:
            bank, filled = self.bank.clone(), self.filled.clone()
            averages = momentum * bank[index] + (1 - momentum) * embeddings
            known = self.filled[index, None]
            averages = torch.where(known, F.normalize(averages, dim=0), embeddings)
            for row, new in zip(index.tolist(), averages, strict=True):
                bank[row], filled[row] = new, True
            self.bank, self.filled = bank, filled
            return
        # New tensors, since the backward pass reads the old ones.
        bank, filled = self.bank.clone(), self.filled.clone()
        for row, new in zip(index.tolist(), embeddings, strict=True):
            old = self.bank[row]
            bank[row] = momentum * old + (1 - momentum) * new if self.filled[row] else new
            filled[row] = True
        self.bank, self.filled = F.normalize(bank), filled
