"""ARM: adapt to a domain by a context, which a network takes from its unlabeled samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fishr_exp.core.contracts import Batch, Facts, Loss, Model, Objective, Trainer
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import per_sample_losses
from fishr_exp.trainers._terms import check_choice, mean_risk

CONVENTIONS = ("intended", "published")
_FILTERS, _WINDOW = 64, 5


class WithContext(nn.Module):
    """A featurizer of images with a context as one more channel, the mean over their group.

    Args:
        body: The featurizer, of images with C + 1 channels.
        channels: C.
        grouped: Whether images without given sizes are in groups of `group`, where their number is
            a multiple of it; otherwise all are one group.

    Attributes:
        group: A number of images, 0 before the first minibatch.
    """

    def __init__(self, body: nn.Module, channels: int, *, grouped: bool) -> None:
        super().__init__()
        self.body = body
        self.grouped = grouped
        self.context = nn.Sequential(
            *_convolution(channels),
            *_convolution(_FILTERS),
            nn.Conv2d(_FILTERS, 1, _WINDOW, padding=_WINDOW // 2),
        )
        self.group: Tensor
        self.register_buffer("group", torch.tensor(0))

    def forward(self, x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Map images x [n, C, H, W], which are in groups of these sizes, to features [n, F]."""
        if sizes is None:
            group = int(self.group) if self.grouped else 0
            sizes = [group] * (len(x) // group) if group and len(x) % group == 0 else [len(x)]
        groups = self.context(x).split(list(sizes))
        means = [own.mean(0, keepdim=True).expand_as(own) for own in groups]
        return self.body(torch.cat([x, torch.cat(means)], 1))


class Arm(Trainer):
    """Minimize the mean risk of a network that also reads the mean context of a sample's domain.

        c_e = mean over domain e's minibatch of context(x_i)    [1, H, W]
        objective = (1/D) Σ_e mean over domain e of l(network([x_i, c_e]), y_i)

    The context network has three 5×5 convolutions, with BatchNorm and ReLU between them. At test
    time the context is the mean over the batch: predictions depend on what else is in it, which
    must be samples of one domain. The first layer of the featurizer gets one more input channel,
    with the weights of the first.

    Args:
        convention: `intended` (as above) or `published`: DomainBed's code, which does not train
            the context network, and at test time takes groups of the size of a training minibatch
            where the batch is a multiple of that.
        loss: Of each sample.

    Raises:
        ConfigError: If the convention is another one, samples are not images, or the featurizer
            begins with something else than a convolution or a linear layer over whole images.

    Source: Zhang et al. (NeurIPS 2021, arXiv:2007.02931), ARM-CML.
    """

    printed_name = "ARM"
    refuses_processes = "its prediction depends on the whole batch, which they would divide"

    def __init__(self, convention: str = "intended", loss: Loss = per_sample_losses) -> None:
        super().__init__(loss)
        check_choice("trainer.convention", convention, CONVENTIONS)
        self.convention = convention

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Return a model whose featurizer has the context network, and one more input channel."""
        shape = facts.input_shape
        if len(shape) != 3:
            shown = "x".join(map(str, shape))
            reason = f"needs images [channels, height, width], and samples are {shown}"
            raise ConfigError("trainer", "arm", reason, "choose another dataset or trainer")
        widen(model.featurizer, shape)
        published = self.convention == "published"
        featurizer = WithContext(model.featurizer, shape[0], grouped=published)
        featurizer.context.requires_grad_(not published)
        return Model(featurizer, model.classifier)

    def objective(self, model: Model, batch: Batch, step: int) -> Objective:
        """Return the objective of one batch."""
        del step
        if self.convention == "published":
            model.featurizer.group.fill_(batch.sizes[0])  # type: ignore[operator, union-attr]
        logits = model.classifier(model.featurizer(batch.x, batch.sizes))
        risk = mean_risk(batch, self.loss(logits, batch.y))
        return Objective(risk, {"risk": risk, "objective": risk})


def _convolution(channels: int) -> tuple[nn.Module, ...]:
    """A convolution with BatchNorm, which would take away its bias, and ReLU."""
    layer = nn.Conv2d(channels, _FILTERS, _WINDOW, padding=_WINDOW // 2, bias=False)
    return layer, nn.BatchNorm2d(_FILTERS), nn.ReLU(inplace=True)


def widen(featurizer: nn.Module, shape: Sequence[int]) -> None:
    """Give the first convolution or linear layer of a featurizer one more input channel.

    The new channel comes last, and its weights are those of the first channel.

    Args:
        featurizer: Changed in place.
        shape: Of a sample, (C, H, W).

    Raises:
        ConfigError: If that layer does not read C channels, or all C·H·W numbers.
    """
    kinds = (nn.Conv2d, nn.Linear)
    first = next((m for m in featurizer.modules() if isinstance(m, kinds)), None)
    if isinstance(first, nn.Conv2d) and (first.in_channels, first.groups) == (shape[0], 1):
        first.in_channels += 1
        more = first.weight[:, :1]
    elif isinstance(first, nn.Linear) and first.in_features == math.prod(shape):
        pixels = shape[1] * shape[2]
        first.in_features += pixels
        more = first.weight[:, :pixels]
    else:
        reason = "needs a network that begins with a convolution, or a linear layer over all pixels"
        raise ConfigError("trainer", "arm", reason, "choose another model")
    weight = torch.cat([first.weight, more], 1).detach()
    first.weight = nn.Parameter(weight, requires_grad=first.weight.requires_grad)
