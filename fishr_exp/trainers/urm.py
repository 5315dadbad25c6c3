"""URM: let the features be distributed uniformly, by an adversary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishr_exp.core import distributed
from fishr_exp.core.contracts import (
    Batch,
    Facts,
    Model,
    Objective,
    Parameters,
    Trainer,
    trainable,
)
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._terms import check_choice, check_rate, check_weight, mean_risk

# The last activation of the featurizer, and the bounds of the noise that its output should be.
OUTPUTS: dict[str, tuple[type[nn.Module], float, float]] = {
    "tanh": (nn.Tanh, -1, 1),
    "relu": (nn.ReLU, 0, 1),
    "sigmoid": (nn.Sigmoid, 0, 1),
}
_WIDTH = 100  # of the discriminator


class Urm(Trainer):
    """Train a discriminator to tell uniform noise from features, and the network against it.

    The features pass through a last activation. With d the discriminator's logit of being noise,
    BCE(z, t) the binary cross-entropy, and u uniform noise with the bounds of the activation, a
    step is two updates, by two optimizers:

        network:       minimize mean risk + adversarial_weight · mean BCE(d(f), 1)
        discriminator: minimize mean BCE(d(u), 1) + adversarial_weight · mean BCE(d(f), 0)

    The second one uses the features of the first one's forward pass. The discriminator is a
    perceptron with hidden layers of 100 units and leaky ReLU. The `objective` in the logs is the
    mean of both.

    Args:
        adversarial_weight: Weight of the adversarial losses, finite and >= 0.
        output: The last activation: `tanh` (noise in [−1, 1)), `relu` or `sigmoid` (in [0, 1)).
        discriminator_layers: Number of hidden layers of the discriminator after the first, >= 0.
        discriminator_lr: Its learning rate, positive; None: the optimizer's.
        loss: Of each sample, for the risk.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Krishnamachari et al. (TMLR 2024), as the authors contributed it to DomainBed.
    """

    printed_name = "URM"

    def __init__(
        self,
        adversarial_weight: float = 0.1,
        output: str = "tanh",
        discriminator_layers: int = 1,
        discriminator_lr: float | None = None,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(loss)
        check_weight("trainer.adversarial_weight", adversarial_weight)
        check_choice("trainer.output", output, OUTPUTS)
        if discriminator_layers < 0:
            raise ConfigError("trainer.discriminator_layers", discriminator_layers, "must be >= 0")
        check_rate("trainer.discriminator_lr", discriminator_lr)
        self.adversarial_weight = adversarial_weight
        self.output = output
        self.discriminator_layers = discriminator_layers
        self.discriminator_lr = discriminator_lr

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Build the discriminator, and add the activation to the featurizer."""
        layers = [nn.Linear(facts.features, _WIDTH), nn.LeakyReLU()]
        for _ in range(self.discriminator_layers):
            layers += [nn.Linear(_WIDTH, _WIDTH), nn.LeakyReLU()]
        self.discriminator = nn.Sequential(*layers, nn.Linear(_WIDTH, 1))
        activation, _, _ = OUTPUTS[self.output]
        model.featurizer = nn.Sequential(model.featurizer, activation())
        return model

    def players(self, model: Model) -> Mapping[str, Parameters]:
        """The network, and the discriminator."""
        own: dict[str, object] = {"params": trainable(self)}
        if self.discriminator_lr is not None:
            own["lr"] = self.discriminator_lr
        return {"model": trainable(model), "discriminator": [own]}

    def objective(self, model: Model, batch: Batch, step: int) -> Iterator[Objective]:
        """Yield the two objectives in turn; `step` counts the steps made so far."""
        del step
        features = model.featurizer(batch.x)
        risk = mean_risk(batch, self.loss(model.classifier(features), batch.y))
        total = risk + self.adversarial_weight * self._taken_for(1, batch, features)
        yield Objective(total, {"risk": risk, "objective": total})
        features = features.detach()
        # softplus(−z) is the binary cross-entropy of the logit z and the target 1.
        of_noise = F.softplus(-self.discriminator(self._noise(features))).mean()
        loss = of_noise + self.adversarial_weight * self._taken_for(0, batch, features)
        yield Objective(loss, {"discriminator_loss": loss}, player="discriminator")

    def _taken_for(self, target: int, batch: Batch, features: Tensor) -> Tensor:
        """Mean cross-entropy of the discriminator on features [N, F], noise being 1."""
        logits = self.discriminator(features).squeeze(1)
        return mean_risk(batch, F.softplus(-logits if target else logits))

    def _noise(self, features: Tensor) -> Tensor:
        """Draw noise for the samples of all processes, the same in each: [N of all, F]."""
        _, low, high = OUTPUTS[self.output]
        count = len(features)
        if distributed.is_active():
            count = int(distributed.total(torch.tensor(count)))
        noise = torch.rand(count, features.shape[1], dtype=features.dtype, device=features.device)
        noise = low + (high - low) * noise
        return (
            distributed.total(noise * distributed.is_first()) if distributed.is_active() else noise
        )
