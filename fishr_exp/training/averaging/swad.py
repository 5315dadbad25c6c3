"""Stochastic weight averaging, densely: over the steps of a valley of the validation loss."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from fishr_exp.core.contracts import Averaging, Model
from fishr_exp.core.errors import ConfigError
from fishr_exp.training.averaging.running import check_batch_norm_steps

log = logging.getLogger(__name__)

CONVENTIONS = ("intended", "published")
MOST = 1000  # evaluations; the weights of each are in memory


class Swad(Averaging):
    """Give as the run's result the mean of the weights over a valley of the validation loss.

    Segment i is the mean of the weights after every update between two evaluations, and L_i the
    validation loss of the weights at its end (the mean over the training domains). With
    n_c = `n_converge`, n_t = `n_tolerance`, r = `tolerance_ratio`:

        1. The valley is found at the first i at which the oldest of the last n_c losses is the
           smallest. That segment is a = i − n_c + 1; the threshold is
           T = (1 + r) · mean(L_a, ..., L_i).
        2. Of the last n_t segments, those up to a count: from behind the last one of them whose
           loss exceeds T, up to a. With n_t <= n_c, those from a to a + n_c − n_t.
        3. At every later evaluation, of the last n_t segments: where the oldest comes before a,
           wait. If the smallest of their losses exceeds T, the valley has ended, and so does the
           training. Else the oldest counts.
        4. If all steps are made before that, of the last n_t − 1 segments, from the oldest on, each
           counts while the smallest loss from it on does not exceed T.

        θ̄ = mean of the segments that count, with equal weights

    Without a valley, the result is the last segment.

    The records of the run show the weights at each evaluation, not the mean. It is evaluated once,
    as the result; no table can select another step of such a run. Early stopping is not used.

    Args:
        n_converge: n_c, evaluations, from 1 to 1000.
        n_tolerance: n_t, evaluations, from 1 to 1000.
        tolerance_ratio: r, at least 0. The paper's is 0.3, and 0.2 on VLCS.
        convention: `intended`: as above, each segment counts once. `published`: as their code,
            which overwrites the first of the segments of step 2, so that it does not count there;
            where there are fewer than n_t segments, looks at the oldest n_t − n_c + 1 in step 2,
            also at those after a; and counts a segment again in step 3 or 4, the very first one at
            every evaluation until there are n_t. If none counts, the result is a.
        batch_norm_steps: Minibatches over which the mean's BatchNorm statistics are computed, where
            BatchNorm is not frozen; 0: those of the last weights.

    Raises:
        ConfigError: If an argument is outside its range.

    Source: Cha et al. (arXiv:2102.08604) and their code (khanrc/swad, 252190e), whose selection
        `published` reproduces.
    Departs: the first evaluation comes after `steps_per_epoch` updates, in their code after one.
        The loss is the run's (label smoothing, class weights), theirs the cross-entropy.
    """

    printed_name = "SWAD"
    selects = True
    monitor = "validation_loss"

    segment: Tensor  # [P], the mean of the weights since the last evaluation
    kept: Tensor  # [K, P], the last K segments; number i lies at i % K
    losses: Tensor  # [K]
    ends: Tensor  # [K], the last update of each
    mean: Tensor  # [P], of the segments that count; segment a, where none does so far
    count: Tensor  # updates in `segment`
    step: Tensor  # updates so far
    number: Tensor  # segments so far
    start: Tensor  # a, or -1
    threshold: Tensor  # T
    picked: Tensor  # segments in `mean`
    newest: Tensor  # the number of the newest segment in `mean`
    end: Tensor  # the last update in `mean`
    ended: Tensor  # whether the valley has ended

    def __init__(
        self,
        n_converge: int = 3,
        n_tolerance: int = 6,
        tolerance_ratio: float = 0.3,
        convention: str = "intended",
        batch_norm_steps: int = 500,
    ) -> None:
        super().__init__()
        for key, value in (("n_converge", n_converge), ("n_tolerance", n_tolerance)):
            if not 1 <= value <= MOST:
                raise ConfigError(f"averaging.{key}", value, f"must be from 1 to {MOST}")
        if not 0 <= tolerance_ratio < float("inf"):
            raise ConfigError("averaging.tolerance_ratio", tolerance_ratio, "must be 0 or more")
        if convention not in CONVENTIONS:
            allowed = f"choose from {', '.join(CONVENTIONS)}"
            raise ConfigError("averaging.convention", convention, allowed)
        check_batch_norm_steps(batch_norm_steps)
        self.n_converge, self.n_tolerance = n_converge, n_tolerance
        self.tolerance_ratio, self.convention = tolerance_ratio, convention
        self.batch_norm_steps = batch_norm_steps

    @property
    def stop(self) -> bool:
        """Whether the valley has ended."""
        return bool(self.ended)

    def prepare(self, model: Model) -> None:
        """Make room for the segments: K + 2 times the weights, K the larger of n_c and n_t."""
        size = max(self.n_converge, self.n_tolerance)
        first, count = next(model.parameters()), sum(p.numel() for p in model.parameters())
        self.register_buffer("segment", first.new_zeros(count))
        self.register_buffer("kept", first.new_zeros(size, count))
        self.register_buffer("mean", first.new_zeros(count))
        self.register_buffer("losses", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("ends", torch.zeros(size, dtype=torch.int64))
        for name in ("count", "step", "number", "picked", "end"):
            self.register_buffer(name, torch.tensor(0))
        self.register_buffer("start", torch.tensor(-1))
        self.register_buffer("newest", torch.tensor(-1))
        self.register_buffer("threshold", torch.tensor(float("inf"), dtype=torch.float64))
        self.register_buffer("ended", torch.tensor(False))

    @torch.no_grad()
    def after_step(self, model: Model, step: int) -> None:
        """Take the weights into the segment."""
        self.count += 1
        self.step.fill_(step)
        share = 1 / int(self.count)
        for mean, weight in _beside(self.segment, model):
            mean.lerp_(weight, share)

    def after_evaluation(self, numbers: Mapping[str, float]) -> None:
        """End the segment, and decide on it or on earlier ones."""
        newest = int(self.number)
        place = newest % len(self.kept)
        self.kept[place] = self.segment
        self.losses[place] = numbers[self.monitor]
        self.ends[place] = self.step
        self.number += 1
        self.count.zero_()
        if self.start < 0:
            self._look_for_the_valley(newest)
            return
        oldest = max(0, newest - self.n_tolerance + 1)
        if oldest < self.start:
            return
        if min(self._losses(oldest, newest)) > self.threshold:
            self.ended.fill_(True)
            log.info("SWAD: the valley of the validation loss has ended")
            return
        self._pick([oldest])

    def selected(self, model: Model) -> tuple[Model, int]:
        """Return the mean over the valley, in a copy of the model, and the last update in it."""
        result = copy.copy(self)
        own = {name: self._buffers[name].clone() for name in ("mean", "picked", "newest", "end")}  # type: ignore[union-attr]
        result._buffers = {**self._buffers, **own}
        result._end()
        averaged = copy.deepcopy(model).requires_grad_(False)
        for mean, weight in _beside(result.mean, averaged):
            weight.copy_(mean)
        if self.start < 0:
            log.warning("SWAD: the validation loss has no valley; the last segment is the result")
        else:
            log.info("SWAD: segments in the mean: %d, up to step %d", result.picked, result.end)
        return averaged, int(result.end)

    def _look_for_the_valley(self, newest: int) -> None:
        first = newest - self.n_converge + 1
        if first < 0:
            return
        losses = self._losses(first, newest)
        if losses[0] > min(losses):
            return
        self.start.fill_(first)
        self.threshold.fill_((1 + self.tolerance_ratio) * sum(losses) / len(losses))
        place = first % len(self.kept)
        self.mean.copy_(self.kept[place])
        self.end.copy_(self.ends[place])
        log.info(
            "SWAD: a valley of the validation loss from step %d on, up to %g",
            self.end, self.threshold,
        )  # fmt: skip
        self._pick(self._at_the_start(first, newest))

    def _at_the_start(self, first: int, newest: int) -> Iterable[int]:
        """Return the segments that count when the valley is found."""
        published = self.convention == "published"
        more = self.n_tolerance - self.n_converge
        if more <= 0:
            return range(first + published, first - more + 1)
        oldest = max(0, newest - self.n_tolerance + 1)
        last = min(oldest + more, newest) if published else first
        losses = self._losses(oldest, last)
        above = [place for place, loss in enumerate(losses) if loss > self.threshold]
        begin = above[-1] + 1 if above else 0
        return range(oldest + begin + published, last + 1)

    def _end(self) -> None:
        """Count what is left when all steps are made."""
        newest = int(self.number) - 1
        if self.start < 0:
            self._pick([newest])
        elif not self.ended:
            for number in range(max(0, newest - self.n_tolerance + 1) + 1, newest + 1):
                if min(self._losses(number, newest)) > self.threshold:
                    break
                self._pick([number])

    def _pick(self, numbers: Iterable[int]) -> None:
        """Take segments into the mean."""
        for number in numbers:
            if self.convention == "intended" and number <= self.newest:
                continue
            place = number % len(self.kept)
            self.picked += 1
            if self.picked == 1:  # what is there is segment a, which may not count
                self.mean.copy_(self.kept[place])
            else:
                self.mean += (self.kept[place] - self.mean) / self.picked
            self.newest.fill_(number)
            self.end.copy_(self.ends[place])

    def _losses(self, first: int, last: int) -> list[float]:
        """Return the losses of segments `first` to `last`."""
        losses = self.losses.tolist()
        return [losses[number % len(losses)] for number in range(first, last + 1)]


def _beside(vector: Tensor, model: Model) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair each parameter of a model with its part of a vector [P], of the same shape."""
    parameters = list(model.parameters())
    parts = vector.split([parameter.numel() for parameter in parameters])
    for part, parameter in zip(parts, parameters, strict=True):
        yield part.view(parameter.shape), parameter
