"""`model.json` of a run folder: what its network was built for, to build it again without data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from fishr_exp.runs.content import (
    UnreadableError,
    count,
    finite,
    mapping,
    optional,
    read_object,
    several,
    take,
    text,
)
from fishr_exp.runs.files import to_json, write_atomically
from fishr_exp.runs.names import MODEL


@dataclass(frozen=True)
class ModelFacts:
    """What a run's network was built for.

    Attributes:
        input_shape: Shape of one sample, channels first.
        num_classes: Number of classes.
        class_names: In the order of the labels; empty if they have none.
        training_domains: The domains that it was trained on, in the order of a batch.
        steps: The most steps that the run was to make.
        normalization: `mean` and `std` of each channel, by which values in [0, 1] are scaled before
            the network reads them; None if they are not.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    training_domains: tuple[str, ...]
    steps: int
    normalization: dict[str, list[float]] | None = None

    def write(self, folder: Path) -> None:
        """Write the file of a run folder."""
        write_atomically(folder / MODEL, to_json(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> ModelFacts | None:
        """Read the file of a run folder; None if an earlier version made the run.

        Raises:
            UnreadableError: If the file does not hold them.
        """
        path = folder / MODEL
        if not path.exists():
            return None
        written = read_object(path)
        try:
            found = cls(
                tuple(take(written, "input_shape", several(count))),
                take(written, "num_classes", count),
                tuple(take(written, "class_names", several(text))),
                tuple(take(written, "training_domains", several(text))),
                take(written, "steps", count),
                take(written, "normalization", optional(mapping(several(finite))), None),
            )
            names = found.class_names
            if names and len(names) != found.num_classes:
                raise ValueError(
                    f"it names {len(found.class_names)} of {found.num_classes} classes"
                )
        except ValueError as error:
            raise UnreadableError.of(path, f"is damaged: {error}") from error
        return found
