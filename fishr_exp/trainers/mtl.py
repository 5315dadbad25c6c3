"""MTL, marginal transfer learning: the classifier also reads what domain a sample is of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fishr_exp.core.contracts import Batch, Facts, Loss, Model, Objective, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._terms import check_choice, domain_risks, in_full

CONVENTIONS = ("intended", "published")


class WithMarginal(nn.Module):
    """A featurizer whose features are followed by an embedding of their domain: [n, 2F].

    Args:
        body: The featurizer, which maps x to [n, F].
        noise: Put noise in the place of the embedding, as DomainBed does.
    """

    def __init__(self, body: nn.Module, noise: bool) -> None:
        super().__init__()
        self.body = body
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        """Map x to its features and their mean over x, which must be samples of one domain."""
        features = in_full(self.body(x))
        if not self.noise:
            return self.joined(features, features.mean(0))
        # Not of the global stream, so that an evaluation can be repeated.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(features.shape, generator=generator)
        return self.joined(features, noise.to(features))

    @staticmethod
    def joined(features: Tensor, embedding: Tensor) -> Tensor:
        """Return features [n, F] followed by an embedding, [F] or [n, F]."""
        return torch.cat([features, embedding.expand_as(features)], 1)


class Mtl(Trainer):
    """Minimize the mean risk of a classifier that reads features and an embedding of their domain.

        objective = (1/D) Σ_e mean over domain e of l(classifier([f_i, μ_e]), y_i)
        μ_e ← ema · mean of f_i over domain e's minibatch + (1 − ema) · μ_e,    μ_e = 0 at first

    The gradient also flows through the minibatch's mean. At test time μ is the mean of the features
    of the batch: predictions depend on what else is in it, which must be samples of one domain.

    Args:
        ema: Weight of the minibatch's mean in the embedding, in (0, 1].
        convention: `intended` (as above) or `published`: DomainBed's code, which overwrites the
            embedding with noise from N(0, 1), one draw per sample, in training and at test time,
            and minimizes the sum of the risks.
        loss: Of each sample.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Blanchard et al. (JMLR 2021, arXiv:1711.07910), in DomainBed's form: a network with the
    mean of its features in place of a kernel machine with a kernel mean embedding.
    """

    printed_name = "MTL"
    refuses_processes = "its prediction depends on the whole batch, which they would divide"
    refuses_compile = "its featurizer reads the batch in parts; pass compile=false"

    def __init__(
        self, ema: float = 0.99, convention: str = "intended", loss: Loss = per_sample_losses
    ) -> None:
        super().__init__(loss)
        check_choice("trainer.convention", convention, CONVENTIONS)
        if not 0 < ema <= 1:
            raise ConfigError("trainer.ema", ema, "must be in (0, 1]", "1 keeps no average")
        self.ema = ema
        self.convention = convention
        self.embeddings: Tensor

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Return a model whose classifier has 2F inputs, drawn as PyTorch draws a linear layer."""
        self.register_buffer("embeddings", torch.zeros(len(facts.domains), facts.features))
        body = WithMarginal(model.featurizer, self.convention == "published")
        old = model.classifier
        new = nn.Linear(2 * facts.features, old.out_features, bias=old.bias is not None)
        return Model(body, new)

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch; it updates the embeddings."""
        del step
        joined = model.featurizer.joined
        features = in_full(model.featurizer.body(batch.x))  # type: ignore[operator]
        means = torch.stack([of_one.mean(0) for of_one in batch.by_domain(features)])  # [D, F]
        means = self.ema * means + (1 - self.ema) * self.embeddings
        self.embeddings = means.detach()
        inputs = []
        for of_one, mean in zip(batch.by_domain(features), means, strict=True):
            embedding = mean.expand_as(of_one)
            if self.convention == "published":
                embedding = embedding.clone().normal_()
            inputs.append(joined(of_one, embedding))  # type: ignore[operator]
        logits = model.classifier(torch.cat(inputs))
        risks = domain_risks(batch, self.loss(logits, batch.y))
        total = risks.sum() if self.convention == "published" else risks.mean()
        return Objective(total, {"risk": risks.mean(), "objective": total})
