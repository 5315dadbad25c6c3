"""What a model's classifier reads, kept in passing."""

from __future__ import annotations

from torch import Tensor

from fishr_exp.core.contracts import Model


class FeaturesRead:
    """Within the block, keeps what the model's classifier reads at first: `features`, [N, F]."""

    def __init__(self, model: Model) -> None:
        self.features: Tensor | None = None
        self._classifier = model.classifier

    def __enter__(self) -> FeaturesRead:
        # A function, unlike a method, is the same one in a copy of the model, as BackPACK makes.
        def keep(_classifier: object, inputs: tuple[Tensor, ...]) -> None:
            if self.features is None:
                self.features = inputs[0]

        self._hook = self._classifier.register_forward_pre_hook(keep)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()
