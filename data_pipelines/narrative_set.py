"""Narratives as a set of pictures: what a record holds and how it is made."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines import alignment, coco
from data_pipelines.alignment import NUM_POINTS
from data_pipelines.building import Materials, Picture, PictureSet
from data_pipelines.narratives import Narrative, Skipped, parse_narrative

NAME = "localized_narratives_coco"  # the set on COCO's pictures: what --name is unless given


class LocalizedNarratives(PictureSet):
    """One record per picture: the picture, its narratives, its named objects where a COCO instances file is given."""

    DESCRIPTION = "Pictures with spoken captions; each word has the place the mouse was at while it was said."
    HOMEPAGE = "https://google.github.io/localized-narratives"
    UNIT = "narratives"
    COUNTS = ("narratives", "words", "words_located", "objects")

    @staticmethod
    def features() -> tfds.features.FeaturesDict:
        tensor, text = tfds.features.Tensor, tfds.features.Text
        # A tuple of W, U or K things; frames are [0, 1] of the picture, boxes xyxy.
        several = tfds.features.Sequence
        return tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "image_id": text(),
                "dataset_id": text(),
                "narratives": several(
                    {
                        "caption": text(),
                        "narrative_id": text(),  # <image_id>#<k>
                        "annotator": np.int64,
                        "word_spans": several(tensor(shape=(2,), dtype=np.int32)),  # [start, end) in characters
                        "word_utterance": several(np.int32),  # which utterance spoke the word, -1 = none
                        # xy, uniform in time
                        "utterance_points": several(tensor(shape=(NUM_POINTS, 2), dtype=np.float32)),
                        "utterance_centers": several(tensor(shape=(2,), dtype=np.float32)),  # average over time
                        "utterance_boxes": several(tensor(shape=(4,), dtype=np.float32)),
                        # False: no trace in its span, its rows mean nothing
                        "utterance_valid": several(np.bool_),
                    }
                ),
                "objects": several({"box": tensor(shape=(4,), dtype=np.float32), "name": text()}),
            }
        )

    @staticmethod
    def parse(line: bytes) -> Narrative:
        return parse_narrative(line)

    def record(
        self,
        picture: Picture,
        found: Sequence[Narrative],
        materials: Materials,
        skipped: Skipped,
        mended: Counter[str],
    ) -> dict[str, Any]:
        del skipped, mended  # whatever is wrong with a narrative shows in its line
        return picture_record(picture.image_id, picture.jpeg, found, materials.objects(picture.image_id, picture.size))

    @staticmethod
    def count(record: Mapping[str, Any]) -> Mapping[str, int]:
        counts = Counter[str](objects=len(record["objects"]))
        for narrative in record["narratives"]:
            utterance = narrative["word_utterance"]
            counts["narratives"] += 1
            counts["words"] += len(utterance)
            counts["words_located"] += int(narrative["utterance_valid"][utterance[utterance >= 0]].sum())
        return counts


def picture_record(
    image_id: str, jpeg: bytes, narratives: Sequence[Narrative], objects: coco.Objects
) -> dict[str, Any]:
    """One record of the set, as `LocalizedNarratives.features` says."""
    return {
        "image": jpeg,
        "image_id": image_id,
        "dataset_id": narratives[0].dataset_id,
        "narratives": [_narrative_record(f"{image_id}#{k}", narrative) for k, narrative in enumerate(narratives)],
        "objects": [{"box": box, "name": name} for box, name in zip(objects.boxes, objects.names, strict=True)],
    }


def _narrative_record(narrative_id: str, narrative: Narrative) -> dict[str, Any]:
    places = alignment.utterance_places(narrative.utterances, narrative.traces)
    return {
        "caption": narrative.caption,
        "narrative_id": narrative_id,
        "annotator": narrative.annotator_id,
        "word_spans": alignment.word_spans(narrative.caption),
        "word_utterance": alignment.by_text(narrative.caption, narrative.utterances),
        "utterance_points": places.points,
        "utterance_centers": places.centers,
        "utterance_boxes": places.boxes,
        "utterance_valid": places.valid,
    }
