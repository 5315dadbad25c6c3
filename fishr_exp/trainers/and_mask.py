"""AND-mask: move a weight only where the domains agree on the sign of its gradient."""

from __future__ import annotations

import logging

from torch import Tensor

from fishr_exp.core.contracts import Facts, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._directions import Masked

_log = logging.getLogger(__name__)


class AndMask(Masked):
    """Keep the coordinates of the mean gradient on whose sign the domains agree.

        m = [ |(1/D) Σ_e sign(g_e)| >= tau ],    direction = m · ḡ / (1e-10 + mean(m))

    where g_e is the gradient of domain e's risk and ḡ = (1/D) Σ_e g_e. The mean of m is taken over
    the entries of each parameter tensor, so that its direction keeps its size.

    Args:
        tau: Least agreement, in [0, 1]: 1 is unanimity, 0 keeps everything. The agreement of D
            domains is one of D/D, (D − 2)/D, …, so that only these values make a difference.
        loss: Of each sample.

    Raises:
        ConfigError: If `tau` is outside its range.

    Source: Parascandolo et al. (ICLR 2021, arXiv:2009.00329); the rescaling is DomainBed's.

    Departs: DomainBed keeps m in float32; here it has the type of the weights.
    """

    printed_name = "AND-mask"

    def __init__(self, tau: float = 1.0, loss: Loss = per_sample_losses) -> None:
        super().__init__(loss)
        if not 0 <= tau <= 1:
            raise ConfigError("trainer.tau", tau, "must be in [0, 1]")
        self.tau = tau

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Warn of a `tau` that means the same as another with this number of domains."""
        domains = len(facts.domains)
        values = [k / domains for k in range(domains, -1, -2)]  # the agreements there are
        if values[1] < self.tau < 1:
            _log.warning(
                "trainer.tau=%g: with %d training domains it keeps what 1 keeps; a tau of %.3g or "
                "less keeps more",
                self.tau, domains, values[1],
            )  # fmt: skip
        elif self.tau <= values[-1]:
            _log.warning(
                "trainer.tau=%g: with %d training domains it keeps everything, so that the "
                "direction is ERM's; a tau above %.3g keeps less",
                self.tau, domains, values[-1],
            )  # fmt: skip
        return model

    def mask(self, gradients: Tensor) -> Tensor:
        """Return m, [*shape], from the gradients of one parameter, [D, *shape]."""
        # Sums of signs are whole numbers, which a tau such as 3/5 can be compared with exactly.
        agreement = gradients.sign().sum(0).abs()
        return (agreement >= self.tau * len(gradients)).to(gradients.dtype)
