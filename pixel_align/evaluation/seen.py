"""Which pictures of an evaluation set a model was trained on.

Data sets share photographs under several numbers: COCO 2014 and 2017 split one collection twice, RefCOCO and part of
Visual Genome are pictures of COCO. So a picture has one canonical name, `collection:id`, wherever it lies:
`coco:391895`, `visual_genome:2371680` (not in COCO), `flickr30k:1000092795`, `open_images:<16 hexadecimal digits>`,
`ade20k:ADE_train_00000001`, `synthetic:1`. A built split keeps its names beside its records (`FILE`); a run keeps those
of its whole history beside its checkpoints (`Seen`). Plain Python: reading them needs neither TensorFlow nor JAX.

Limits: names are compared, not pixels, so the same photograph in two collections counts as two pictures (except Visual
Genome's, whose publisher says which are COCO's). Synthetic scenes are told apart by split and number, not by world or
seed. A slice of a split counts as the whole split.
"""

import dataclasses
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Of a built split, beside its records: {image id as in the records: canonical name}.
FILE = "image_ids-{split}.json"
# Of a run, beside its checkpoints.
SEEN_FILE = "images_seen_in_training.json.gz"

Names = Mapping[str, str]

# What a publisher's own name of a set says about where its pictures are from.
_COLLECTIONS = (
    ("visual_genome", re.compile(r"visual_?genome|(^|_)vg(_|$)")),
    ("coco", re.compile(r"coco|^(captions|instances|person_keypoints)_(train|val|test)201\d")),
    ("flickr30k", re.compile(r"flick")),  # Localized Narratives spells it "Flick30k"
    ("open_images", re.compile(r"open_?images")),
    ("ade20k", re.compile(r"ade_?20k")),
    ("synthetic", re.compile(r"^synthetic")),
)
_COCO_ID = re.compile(r"(?:COCO_[a-z]+\d{4}_)?0*(\d+)")
_PICTURE = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)


def collection_of(dataset_id: str) -> str:
    """The collection that a publisher's name of a set (`mscoco_val2017`, `refcoco_unc`) tells of, else that name."""
    name = dataset_id.lower()
    return next((collection for collection, pattern in _COLLECTIONS if pattern.search(name)), name)


def canonical(collection: str, image_id: str | int) -> str:
    """The canonical name of a picture: without folder, suffix, COCO's prefix and leading zeros.

    Args:
        collection: as `collection_of` says. For Visual Genome use `visual_genome_names`, which knows COCO's pictures.
        image_id: as published: a number, twelve digits, `COCO_val2014_000000391895.jpg`, `<flickr id>.jpg`, ...
    """
    bare = str(image_id)
    if collection in ("coco", "visual_genome", "synthetic") and (match := _COCO_ID.fullmatch(_bare(bare))):
        return f"{collection}:{match[1]}"
    # Unknown collections may number pictures by folder: their ids are left as they are.
    known = any(collection == name for name, _ in _COLLECTIONS)
    return f"{collection}:{_bare(bare) if known else bare}"


def visual_genome_names(image_data: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Records of Visual Genome's image_data.json (`image_id`, `coco_id` or None) -> {image id: canonical name}."""
    names = {}
    for record in image_data:
        number, coco = record["image_id"], record.get("coco_id")
        names[str(number)] = canonical("visual_genome", number) if coco is None else canonical("coco", coco)
    return names


def read(folder: str | os.PathLike[str] | None, split: str) -> dict[str, str] | None:
    """{image id as in the records: canonical name} of a built split; None where its names were not kept.

    Args:
        folder: of the set's version, <data folder>/<name>/<version>; None for a source that has none.
        split: also as in `train[:10%]+validation`; a slice counts as its whole split.

    Raises:
        ValueError: a file that holds something else.
    """
    if folder is None:
        return None
    names: dict[str, str] = {}
    for part in split.split("+"):
        path = Path(folder) / FILE.format(split=part.partition("[")[0].strip())
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
                raise TypeError("not an object of texts")
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"image names file {str(path)!r} is broken ({error}), expected the one that a build wrote. Build the "
                "split again with --overwrite."
            ) from error
        names |= content
    return names


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a model was trained on, earlier stages included.

    Attributes:
      sets: `task/split` -> canonical names of its pictures.
      unknown: sets, or weights from elsewhere, whose pictures are not known.
    """

    sets: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @classmethod
    def of(cls, sets: Mapping[str, Names | None], *earlier: "Seen") -> "Seen":
        """From the names of a mixture's sets (`read`), after the stages that its weights went through before."""
        joined: dict[str, set[str]] = {}
        for stage in earlier:
            for key, names in stage.sets.items():
                joined.setdefault(key, set()).update(names)
        for key, own in sets.items():
            if own is not None:
                joined.setdefault(key, set()).update(own.values())
        unknown = [name for stage in earlier for name in stage.unknown]
        unknown += [key for key, own in sets.items() if own is None]
        return cls({key: frozenset(names) for key, names in joined.items()}, tuple(dict.fromkeys(unknown)))

    def __contains__(self, name: str) -> bool:
        return any(name in names for names in self.sets.values())

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Leaves `SEEN_FILE` in a folder, whole or not at all. The same content gives the same bytes."""
        content = {"sets": {key: sorted(names) for key, names in sorted(self.sets.items())}, "unknown": self.unknown}
        path = Path(folder) / SEEN_FILE
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(gzip.compress(json.dumps(content).encode(), compresslevel=6, mtime=0))
        os.replace(partial, path)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "Seen | None":
        """What `write` left in a folder; None where nothing is. Raises ValueError where it is broken."""
        path = Path(folder) / SEEN_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
            return cls({key: frozenset(names) for key, names in content["sets"].items()}, tuple(content["unknown"]))
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{str(path)!r} is broken ({type(error).__name__}: {error}), expected what training wrote. Remove it: "
                "scores on unseen images are then left out."
            ) from error


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Of one evaluation set with what was trained on.

    Attributes:
      evaluation: name of the set.
      pictures: in it; None where its names were not kept.
      seen: how many of them were trained on.
      through: `task/split` -> how many it gave, largest first; one picture may come through several.
      unknown: what else was trained on, with pictures that are not known.
    """

    evaluation: str
    pictures: int | None
    seen: int
    through: Mapping[str, int]
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        """One line, which also says what is not known."""
        if self.pictures is None:
            return (
                f"{self.evaluation}: images seen in training are not known, as its image names were not kept; build it "
                "again with --overwrite"
            )
        ways = "; ".join(f"{count} in {key}" for key, count in self.through.items())
        line = f"{self.evaluation}: {self.seen} of {self.pictures} images seen in training"
        if ways:
            line += f" ({ways})"
        if self.unknown:
            line += f"; not known of {', '.join(self.unknown)}: build again with --overwrite to know"
        return line


def overlaps(seen: Seen, evaluations: Mapping[str, Names | None]) -> list[Overlap]:
    """One `Overlap` for each evaluation set, {name: its names as `read` gives them}."""
    result = []
    for key, names in evaluations.items():
        pictures = frozenset(names.values()) if names is not None else frozenset[str]()
        counts = {task: len(pictures & trained) for task, trained in seen.sets.items()}
        through = {task: count for task, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count}
        total = sum(name in seen for name in pictures)
        result.append(Overlap(key, None if names is None else len(pictures), total, through, seen.unknown))
    return result


def unseen(image_ids: Sequence[str], names: Names, seen: Seen) -> np.ndarray:
    """bool[n]: which of n examples, by the image ids of their records, show a picture that was not trained on.

    Raises:
        ValueError: an image id that the set's names do not hold.
    """
    missing = next((image_id for image_id in image_ids if image_id not in names), None)
    if missing is not None:
        raise ValueError(
            f"image {missing!r} has no canonical name among the {len(names)} of its set, expected one for each. Build "
            "the set again with --overwrite."
        )
    answers = {image_id: names[image_id] not in seen for image_id in set(image_ids)}
    return np.array([answers[image_id] for image_id in image_ids], bool)


def figures(
    score: Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]],
    targets: Sequence[Any],
    predictions: Sequence[Any],
    image_ids: Sequence[str],
    names: Names | None,
    seen: Seen | None,
) -> dict[str, float]:
    """What metrics.json says beside the full score.

    Returns:
        `unseen/images`, `unseen/examples`, `images_seen_in_training`: counts. `unseen/<metric>`: over the unseen ones,
        where there are any. `training_sets_unknown`: how many sets of training may hold more of these pictures.
        Empty where the names of the set, or what was trained on, were not kept.
    """
    if names is None or seen is None:
        return {}
    fresh = unseen(image_ids, names, seen)
    every, kept = {names[i] for i in image_ids}, {names[i] for i, new in zip(image_ids, fresh, strict=True) if new}
    result: dict[str, float] = {
        "images_seen_in_training": len(every) - len(kept),
        "training_sets_unknown": len(seen.unknown),
        "unseen/images": len(kept),
        "unseen/examples": int(fresh.sum()),
    }
    if fresh.any():
        rows = np.flatnonzero(fresh).tolist()
        scored = score([targets[i] for i in rows], [predictions[i] for i in rows])
        result |= {f"unseen/{key}": value for key, value in scored.items()}
    return result


def _bare(image_id: str) -> str:
    """Without folder and the suffix of a picture."""
    return _PICTURE.sub("", image_id.rpartition("/")[2])
