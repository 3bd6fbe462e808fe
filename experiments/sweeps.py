"""What papers compare, as named generators of overrides: every point is what `--set` would change of one experiment.

    pixel-align sweep experiments/sweeps.py:lora_ranks --experiment experiments/localized_narratives.py:t5_xl \\
        --set data.dir=DATA --set data.vocabulary=spiece.model

See docs/sweeps.md. Each sweep but `rates_and_places` changes an experiment of T5-XL with two image encoders; each
begins with what the experiment is. Where public weights or a stage before are read, what a point adds or leaves out has
to be named in `init.new` and `init.unused`; the points do. `image_encoders` and `extractors` choose parts of the
published sizes. Results: unmeasured, but for those of `rates_and_places`, in docs/sweeps.md.
"""

from collections.abc import Callable, Iterator
from typing import Any

from pixel_align.sweep.points import grid

Point = dict[str, Any]


def word_places() -> Iterator[Point]:
    """With and without the places of words: what do they teach the words themselves?"""
    yield {"model.loss.point": 0.1}
    yield {"model.loss.point": 0.0}


def rates_and_places() -> Iterator[Point]:
    """The learning rate by the weight of the places, nine points: for the demo's model, from nothing."""
    yield from grid({"optim.peak_lr": (2e-3, 5e-4, 8e-3), "model.loss.point": (0.1, 0.03, 0.3)})


def language_model() -> Iterator[Point]:
    """The language model with adapters, frozen, trained whole."""
    yield {"model.text.frozen": True}
    yield {"model.text.frozen": True, "model.text.lora.rank": 0, "init.unused": ("text/.*/lora/.*",)}
    yield {"model.text.frozen": False, "model.text.lora.rank": 0, "init.unused": ("text/.*/lora/.*",)}


def lora_ranks() -> Iterator[Point]:
    """Adapters of several ranks on query and value, and of the published one on all linear layers."""
    for rank in (32, 4, 8, 16, 64):
        yield {"model.text.lora.rank": rank, "init.new": ("text/.*/lora/.*",)}
    everywhere = ("query", "key", "value", "out", "wi", "wo")
    yield {"model.text.lora.rank": 32, "model.text.lora.targets": everywhere, "init.new": ("text/.*/lora/.*",)}


def queries() -> Iterator[Point]:
    """How many visual tokens the language model gets of a prompt."""
    for count in (32, 1, 4, 8, 16, 64):
        yield {"model.extractor.queries": count, "init.new": ("extractor/.*",)}


def image_encoders() -> Iterator[Point]:
    """Both encoders, EVA02-L alone, SAM ViT-H alone."""
    yield {"model.image.kind": "fusion"}
    for kind, lost in (("eva_vit", "sam"), ("sam_vit", "eva")):
        # What reads the image features is of another width.
        yield {
            "model.image.kind": kind,
            "model.image.frozen": kind == "sam_vit",
            "init.new": ("extractor/image_projection/.*",),
            "init.unused": (f"image/{lost}/.*",),
        }


def extractors() -> Iterator[Point]:
    """The extractor, and RoIAlign in its place."""
    yield {"model.extractor.kind": "two_way"}
    yield {"model.extractor.kind": "roi", "init.new": ("extractor/.*",), "init.unused": ("extractor/.*",)}


SWEEPS: dict[str, Callable[[], Iterator[Point]]] = {
    sweep.__name__: sweep
    for sweep in (word_places, rates_and_places, language_model, lora_ranks, queries, image_encoders, extractors)
}
