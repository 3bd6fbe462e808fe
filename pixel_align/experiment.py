"""The tree of settings that is a run: one frozen dataclass, each part defined beside the code that it configures."""

import dataclasses
from typing import Literal

from pixel_align.batch import Shape
from pixel_align.data import DataConfig, positive
from pixel_align.models import ModelConfig
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.optim import Optim
from pixel_align.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop."""

    steps: int = 10_000
    seed: int = 0  # of the initial parameters and of dropout
    accumulate: int = 1  # parts of a step's batches, one after the other: the activations of one part are held
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # in which the tables of frozen parts rest (state.RESTING)
    log_every: int = 50  # steps between lines of metrics.jsonl
    checkpoint_every: int = 1_000  # steps; the last step is always saved
    keep: int = 3  # newest checkpoints that stay
    # "trainable": only what is trained, with digests of the rest, which comes from init.checkpoint or the seed again.
    save: Literal["all", "trainable"] = "all"
    profile_steps: tuple[int, ...] = ()  # (first, last) step to trace into WORKDIR/profile, () for none

    def __post_init__(self) -> None:
        positive("train", self, ("steps", "accumulate", "log_every", "checkpoint_every", "keep"))
        if self.profile_steps and (
            len(self.profile_steps) != 2 or not 0 < self.profile_steps[0] <= self.profile_steps[1]
        ):
            raise ValueError(
                f"train.profile_steps is {self.profile_steps}, expected the first and the last step to trace, or none. "
                "Write it as 20,24."
            )


@dataclasses.dataclass(frozen=True)
class Eval:
    """One evaluation: which examples, asked how, how often."""

    task: str = ""  # a seqio task; its metrics are used
    split: str = "validation"
    mode: str = "trace"
    every: int = 0  # steps; 0 only at the end
    limit: int = 0  # at most so many examples; 0 for all
    batch_size: int = 32
    pictures: int = 8  # examples drawn into one sheet under WORKDIR/pictures
    shape: Shape | None = None  # of its batches; None for model.shape
    transform: Literal["fit", "center_crop"] = "fit"  # the whole picture, or its middle (published for COCO captions)

    def __post_init__(self) -> None:
        positive("evals", self, ("batch_size",))


@dataclasses.dataclass(frozen=True)
class Init:
    """Where parameters come from before step 0; a run that already has a checkpoint resumes and ignores this."""

    checkpoint: str = ""  # a run or checkpoint folder whose parameters are taken over by name; "" starts from nothing
    new: tuple[str, ...] = ()  # regexes of parameters that this experiment adds: they start from nothing
    unused: tuple[str, ...] = ()  # regexes of parameters of that checkpoint that this experiment leaves behind


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides a run. Written as JSON beside its checkpoints."""

    model: ModelConfig = dataclasses.field(default_factory=PixelLLMConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: Optim = dataclasses.field(default_factory=Optim)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: Train = dataclasses.field(default_factory=Train)
    evals: tuple[Eval, ...] = ()
    init: Init = dataclasses.field(default_factory=Init)
    instruction: str = "Describe the image in detail."  # what predicting asks where nothing is asked: as the task does

    def batches(self) -> list[tuple[ModelConfig, DataConfig]]:
        """For each batch of a step: the model as its shape has it, and what fills it."""
        shapes = [None, *(group.shape for group in self.data.further)]
        return [
            (dataclasses.replace(self.model, shape=shape) if shape else self.model, self.data.of_group(index))
            for index, shape in enumerate(shapes)
        ]

    def widest(self) -> ModelConfig:
        """The model with room for what any batch of a step has room for, so that predicting cuts nothing that was
        trained to be read. Room that is not used is padding, which changes no word and no place.
        """
        shapes = [model.shape for model, _ in self.batches()]
        read = ("text", "instruction", "prompt_points", "prompt_mask")
        most = {name: max(getattr(shape, name) for shape in shapes) for name in read}
        return dataclasses.replace(self.model, shape=dataclasses.replace(self.model.shape, **most))
