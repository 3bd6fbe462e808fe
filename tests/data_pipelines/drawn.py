"""Pictures for tests of region sets: gray ones of a given size, and what a Task makes of a built set."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import seqio


def save_gray(path: Path, size: tuple[int, int] = (64, 48), **options: Any) -> Path:
    """A gray picture of (width, height) `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((size[1], size[0], 3), 128, np.uint8)).save(path, **options)
    return path


def examples(folder: Path, task: str, split: str = "train") -> dict[str, dict[str, Any]]:
    """{image id: example} of a Task whose set was built into a folder."""
    found = seqio.TaskRegistry.get(task)
    dataset = found.replace(source=found.source.at(folder)).get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False
    )
    return {example["example_id"].decode(): example for example in dataset.as_numpy_iterator()}


def texts(values: Any) -> list[str]:
    return [value.decode() for value in values]
