"""What the configuration of a run does not say: its first weights, and its extensions.

Both are kept beside the fields in config.json, as "history", where there are any.
"""

import os
import pathlib
from typing import Any, NamedTuple, Self

from duet_jax.errors import UsageError
from duet_jax.runtime import files

# Suffixes of files of weights: ours and PyTorch's.
SAFETENSORS = ".safetensors"
WEIGHTS = (SAFETENSORS, ".pt", ".pth", ".ckpt")


class Source(NamedTuple):
    """The checkpoint, or the file of weights, that --init_from names.

    Attributes:
      run: absolute path of a work directory, or of a file.
      step: a number, newest or best; "" for a file.
    """

    run: pathlib.Path
    step: str

    def __str__(self) -> str:
        """Returns it as --init_from takes it."""
        return f"{self.run}:{self.step}" if self.step else f"{self.run}"

    @property
    def is_file(self) -> bool:
        """Whether it names a file, not a run."""
        return not self.step

    @property
    def short(self) -> str:
        """The name of the run alone, with the step unless it is the newest."""
        step = "" if self.step in ("", "newest") else f"@{self.step}"
        return f"{self.run.name}{step}"


def parse_source(text: str) -> Source:
    """Returns what `--init_from` names: `<run>[:step]`, or a file of weights.

    Without a step it is the newest checkpoint. A file is told by its suffix.

    Raises:
      UsageError: it is empty, or an address such as gs://bucket/run.
    """
    path = files.local(text, "--init_from")
    if path.suffix in WEIGHTS and not path.is_dir():
        return Source(pathlib.Path(os.path.abspath(path)), "")
    run, _, step = text.rpartition(":")
    if run and not path.is_dir():
        path = files.local(run, "--init_from")
    else:
        step = "newest"
    if not text or not (step.isdecimal() or step in ("newest", "best")):
        raise UsageError(
            f"--init_from={text!r} must be the --workdir of a training, "
            "<workdir>:<step> with a number, newest or best, or a file of weights: "
            f"{', '.join(WEIGHTS)}."
        )
    return Source(pathlib.Path(os.path.abspath(path)), step)


# The run that decoders are of, seen from their directory: both may be moved.
ABOVE = ".."


class Origin(NamedTuple):
    """Where the first weights of a run came from.

    Attributes:
      run: absolute path of the work directory or file; ABOVE for decoders.
      asked: which step was asked for: a number, newest or best; "" of a file.
      step: that this was.
      weights: fingerprint of its encoder, as in the results of evaluations.
    """

    run: str
    asked: str
    step: int
    weights: str

    def is_of(self, source: Source) -> bool:
        """Returns whether it is what `source` names, or named when the run began."""
        named = source.step in (self.asked, str(self.step))
        return named and self.run == str(source.run)

    def __str__(self) -> str:
        """Returns what was asked for, and the step that this was."""
        asked = f":{self.asked}" if self.asked else ""
        return f"{self.run}{asked}, step {self.step}"


class Extension(NamedTuple):
    """A change of `config.epochs` in a run.

    Attributes:
      step: of the checkpoint from which the longer run continued.
      before: epochs up to then.
      after: epochs since then; more than before.
    """

    step: int
    before: int
    after: int


class History(NamedTuple):
    """What has happened to a run.

    Attributes:
      origin: of its first weights; None if they were drawn.
      extensions: in the order in which they were made.
    """

    origin: Origin | None = None
    extensions: tuple[Extension, ...] = ()

    @property
    def of_decoders(self) -> bool:
        """Whether decoders of the run in the directory above were trained."""
        return self.origin is not None and self.origin.run == ABOVE

    @classmethod
    def from_json(cls, record: Any) -> Self:
        """Returns the history that `as_json` has stored.

        Raises:
          ValueError: it has another form.
        """
        try:
            origin = Origin(**record["init_from"]) if "init_from" in record else None
            extensions = tuple(Extension(**e) for e in record.get("extensions", []))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"its history is {record!r}") from error
        for part in (*extensions, *([origin] if origin else [])):
            kinds = type(part).__annotations__
            if any(type(value) is not kinds[k] for k, value in part._asdict().items()):
                raise ValueError(f"its history has {part}")
        return cls(origin, extensions)

    def as_json(self) -> dict[str, Any]:
        """Returns it as JSON types; empty if nothing has happened."""
        record = {}
        if self.origin:
            record["init_from"] = self.origin._asdict()
        if self.extensions:
            record["extensions"] = [each._asdict() for each in self.extensions]
        return record
