"""Any risk with any penalties, on one forward pass."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import logging
import math
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor, nn

from fishr_exp.core.contracts import Facts, Model, printed_name
from fishr_exp.core.converting import convert
from fishr_exp.core.errors import ConfigError
from fishr_exp.gradient_variance import Loss, per_sample_losses
from fishr_exp.trainers._one_pass import ForwardPass, OnePass, Part

log = logging.getLogger(__name__)
Keywords = Mapping[str, Any]


class Composed(OnePass):
    """Combine the risk of one method with the penalties of others.

        objective = risk + l2 · Σ‖w‖² + Σ_k gamma_k · penalty_k

    Each penalty has the keywords of its method: gamma, convention, anneal_steps, ramp, and its own.
    With one penalty and the mean risk it takes the steps of that method, to the last bit. The
    optimizer is made from scratch wherever one of the methods does so.

    Args:
        risk: `mean`, or one method with a risk of its own and its keywords: `{group_dro: {}}`.
        penalties: Methods with penalties: `{fishr: {gamma: 1}, coral: {gamma: 0.1}}`.
        l2: Weight of Σ‖w‖² over all parameters, as in `Erm`.
        loss: Of each sample.

    Raises:
        ConfigError: If a name is unknown, or a method refuses its keywords.

    Departs: where several penalties divide the objective by their weight (`colored_mnist`), it is
    divided once, by the largest weight. Mixup's risk has a forward pass of its own, on the mixed
    samples; the penalties see the samples as they are.
    """

    def __init__(
        self,
        risk: str | Mapping[str, Keywords | None] = "mean",
        penalties: Mapping[str, Keywords] | None = None,
        l2: float = 0.0,
        loss: Loss = per_sample_losses,
    ) -> None:
        super().__init__(l2, loss)
        by_name = {
            name: _make(f"trainer.penalties.{name}", name, given, loss, "parts")
            for name, given in (penalties or {}).items()
        }
        self.penalties = nn.ModuleDict(by_name)
        self._risk_key, self.base = _make_risk(risk, loss)
        terms = self._terms()
        if not terms:
            log.warning(
                "trainer=composed has neither a risk nor a penalty, and is ERM; pass, for one, "
                "'trainer.penalties={fishr:{gamma:1}}'"
            )
        if len(terms) > 1 and (alone := [name for name, term in by_name.items() if term.alone]):
            value, reason = {**penalties}[alone[0]], by_name[alone[0]].alone  # type: ignore[dict-item]
            raise ConfigError(f"trainer.penalties.{alone[0]}", value, reason)
        self.min_domains = max([term.min_domains for term in terms], default=1)
        self.anneal_steps = max([term.anneal_steps for term in terms], default=0)
        self.penalty_interval = math.lcm(*(term.penalty_interval for term in terms))
        for reason in ("refuses_compile", "refuses_autocast", "refuses_processes"):
            found = (_renamed(r, key) for key, t in self._keys() if (r := getattr(t, reason)))
            setattr(self, reason, next(found, ""))
        self.matched = next((term.matched for term in terms if term.matched), {})
        self.resets = {}
        overrides: dict[str, Any] = {}
        for step in sorted({step for term in terms for step in term.resets}):
            for term in terms:
                overrides |= term.resets.get(step, {})
            self.resets[step] = dict(overrides)  # with the rate that one before has set
        self.acts_from = {
            f"penalties.{name}.{key}": step
            for name, term in by_name.items()
            for key, step in term.acts_from.items()
        }
        if self.base and isinstance(risk, Mapping):
            of_risk = {f"risk.{n}.{k}": s for n in risk for k, s in self.base.acts_from.items()}
            self.acts_from = {**self.acts_from, **of_risk}
        named = [printed_name(term) for term in terms]
        self.printed_name = " + ".join(named) or "ERM"

    def _keys(self) -> list[tuple[str, OnePass]]:
        """The methods, with the keys that their keywords are under."""
        first = [(self._risk_key, self.base)] if self.base else []
        return [*first, *((f"trainer.penalties.{name}", t) for name, t in self.penalties.items())]  # type: ignore[list-item]

    def _terms(self) -> list[OnePass]:
        return [term for _, term in self._keys()]

    def prepare(self, model: Model, facts: Facts) -> Model:
        """Let each method prepare itself."""
        for key, term in self._keys():
            with _naming(key):
                model = term.prepare(model, facts)
        return model

    def begin(self, forward: ForwardPass) -> None:
        """Let the methods make the forward pass their own way; the first one's is taken."""
        for key, term in self._keys():
            with _naming(key):
                term.begin(forward)
        if self.penalties:  # under autocast, in which the penalties themselves are not computed
            forward.logits  # noqa: B018

    def risk(self, forward: ForwardPass) -> Tensor:
        """The risk of the method that has one; of a single penalty its own, else the mean risk."""
        terms = self._terms()
        single = self.base or (terms[0] if len(terms) == 1 else None)
        return single.risk(forward) if single else super().risk(forward)

    def parts(self, forward: ForwardPass) -> Sequence[Part]:
        """The penalties of all methods, named by them."""
        found = []
        for name, term in self.penalties.items():
            for part in term.parts(forward):  # type: ignore[operator]
                found.append(part._replace(name=f"{part.name}_{name}"))
        return found

    def more_logs(self, forward: ForwardPass) -> dict[str, Tensor]:
        """What the methods log besides."""
        return {
            f"{key}_{name}": value
            for name, term in self.penalties.items()
            for key, value in term.more_logs(forward).items()  # type: ignore[operator]
        }


def _make_risk(risk: str | Mapping[str, Keywords | None], loss: Loss) -> tuple[str, OnePass | None]:
    """Return the key of the keywords of the method that has the risk, and the method."""
    named = {risk: {}} if isinstance(risk, str) else dict(risk)
    if len(named) != 1:
        reason = f"must be one method, and names {len(named)}"
        raise ConfigError("trainer.risk", risk, reason, "pass trainer.risk=mean or {NAME:{}}")
    ((name, given),) = named.items()
    key = f"trainer.risk.{name}"
    if name != "mean":
        return key, _make(key, name, given or {}, loss, "risk")
    if given:
        raise ConfigError(key, given, "mean has no keywords", "pass trainer.risk=mean")
    return key, None


def _make(key: str, name: str, given: Keywords, loss: Loss, what: str) -> OnePass:
    """Make a method that has risks or penalties of its own, with the keywords given."""
    kind = _method(name)
    group = "risk" if what == "risk" else "penalties"
    if kind is None or not _fits(kind, what):
        known = [other for other, found in _methods() if _fits(found, what)]
        first = "mean, " if what == "risk" else ""
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else ""
        raise ConfigError(f"trainer.{group}", name, f"choose from {first}{', '.join(known)}", hint)
    if not isinstance(given, Mapping):
        hint = f"pass {key.rpartition('.')[0]}={{{name}:{{KEY:VALUE}}}}"
        raise ConfigError(key, given, "must be the keywords of the method", hint)
    parameters = inspect.signature(kind).parameters
    known = [keyword for keyword in parameters if keyword not in ("loss", "l2")]
    if unknown := [keyword for keyword in given if keyword not in known]:
        raise ConfigError(f"{key}.{unknown[0]}", given[unknown[0]],
                          f"no such key; known are {', '.join(known)}")  # fmt: skip
    for keyword in known:
        if parameters[keyword].default is inspect.Parameter.empty and keyword not in given:
            raise ConfigError(f"{key}.{keyword}", "???", "must be given")
    hints = get_type_hints(kind.__init__)
    keywords = {k: convert(f"{key}.{k}", value, hints[k]) for k, value in given.items()}
    with _naming(key):
        return kind(**keywords, loss=loss)


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Name the key of a method's keyword, which an error names as if the method were alone."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            _renamed(error.key, key), error.value, _renamed(error.allowed, key),
            _renamed(error.hint, key),
        ) from error  # fmt: skip


def _renamed(text: str, key: str) -> str:
    return text.replace("trainer.", f"{key}.")


def _methods() -> Iterator[tuple[str, type[OnePass]]]:
    """All methods of this folder on one forward pass."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if kind := _method(module.name):
            yield module.name, kind


def _method(name: str) -> type[OnePass] | None:
    """Return the class in `fishr_exp/trainers/NAME.py`; None if there is none on one pass."""
    path = Path(__file__).parent / f"{name}.py"
    if name.startswith("_") or not name.isidentifier() or not path.exists():
        return None
    module = importlib.import_module(f"fishr_exp.trainers.{name}")
    own = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, OnePass) and kind is not Composed
    ]
    return next((kind for kind in own if kind.__module__ == module.__name__), None)


def _fits(kind: type, what: str) -> bool:
    """Whether a method is a risk only, or has penalties."""
    has_parts = kind.parts is not OnePass.parts  # type: ignore[attr-defined]
    has_risk = kind.risk is not OnePass.risk  # type: ignore[attr-defined]
    return has_risk and not has_parts if what == "risk" else has_parts
