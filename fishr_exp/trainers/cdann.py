"""CDANN: as DANN, and the discriminator knows the class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fishr_exp.core import distributed
from fishr_exp.core.contracts import Batch, Facts, Model
from fishr_exp.trainers._adversary import DomainAdversary
from fishr_exp.trainers._terms import sum_of_all


class Cdann(DomainAdversary):
    """Train the network against a discriminator of the domains of each class.

    The keys are `DomainAdversary`'s. The discriminator reads f_i + u_y, where u_y [F] is an
    embedding of class y that it trains itself, and classes have equal weights: its mean loss is

        Σ_i w_i · CE(q(f_i + u_y), e_i),    w_i = 1 / (n_y · C)

    with n_y samples of i's class y in the batch, and C the largest label in the batch plus 1.

    Source: Li et al. (ECCV 2018), "Deep Domain Generalization via Conditional Invariant Adversarial
    Networks", in DomainBed's form: one discriminator for all classes in place of one per class.
    """

    printed_name = "CDANN"

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Build the discriminator and the embeddings of the classes, drawn from N(0, 1)."""
        model = super().prepare(model, facts)
        self.class_embeddings = nn.Embedding(facts.classes, facts.features)
        return model

    def discriminator_input(self, features: Tensor, y: Tensor) -> Tensor:
        """Return features [N, F] plus the embeddings of their classes."""
        return features + self.class_embeddings(y)

    def mean_loss(self, batch: Batch, losses: Tensor) -> Tensor:
        """Return the sum of the losses [N] with weights that are equal for all classes."""
        classes = self.class_embeddings.num_embeddings
        counts = distributed.total(torch.bincount(batch.y, minlength=classes))
        largest = counts.nonzero().max() + 1
        return sum_of_all(losses / (counts[batch.y] * largest))
