"""Questions about pictures and their answers -> a TFDS set, one record per picture -> seqio Tasks.

An answer is a narrative that no one timed, asked for by its question: an example is what `localized_narratives` says at
OUTPUT_FEATURES, with the question as its instruction, and no word has a place.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import alignment, building, sources
from data_pipelines import localized_narratives as ln
from data_pipelines.narratives import BadRecord, Skipped

_MOST_TEXT = 20_000  # characters of a question or an answer


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about a picture, with its answer."""

    image_id: str
    dataset_id: str
    question: str
    answer: str


class QuestionSet(building.PictureSet):
    """One record per picture: the picture, its questions and their answers."""

    DESCRIPTION = "Pictures with questions about them and the answers."
    UNIT = "questions"
    COUNTS = ("questions",)

    @staticmethod
    def features() -> tfds.features.FeaturesDict:
        text = tfds.features.Text
        return tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "image_id": text(),
                "dataset_id": text(),
                "questions": tfds.features.Sequence(
                    {
                        "question_id": text(),  # <image_id>#<k>
                        "question": text(),
                        "answer": text(),
                        # W words of the answer, [start, end) in characters
                        "word_spans": tfds.features.Sequence(tfds.features.Tensor(shape=(2,), dtype=np.int32)),
                    }
                ),
            }
        )

    @staticmethod
    def parse(line: bytes) -> Question:
        fields = json.loads(line)
        for key in ("question", "answer"):
            value = fields.get(key)
            if not isinstance(value, str) or not value.strip() or len(value) > _MOST_TEXT:
                raise BadRecord(f"{key} is {value!r:.100}, expected 1 to {_MOST_TEXT:,} characters")
            if any("\ud800" <= char <= "\udfff" for char in value):
                raise BadRecord(f"{key} holds half of a surrogate pair, expected text that UTF-8 can spell")
        return Question(fields["image_id"], fields["dataset_id"], fields["question"].strip(), fields["answer"].strip())

    def record(
        self,
        picture: building.Picture,
        found: Sequence[Question],
        materials: building.Materials,
        skipped: Skipped,
        mended: Counter[str],
    ) -> dict[str, Any]:
        del materials, skipped, mended  # whatever is wrong with a question shows in its line
        return {
            "image": picture.jpeg,
            "image_id": picture.image_id,
            "dataset_id": found[0].dataset_id,
            "questions": [
                {
                    "question_id": f"{picture.image_id}#{k}",
                    "question": item.question,
                    "answer": item.answer,
                    "word_spans": alignment.word_spans(item.answer),
                }
                for k, item in enumerate(found)
            ],
        }

    @staticmethod
    def count(record: Mapping[str, Any]) -> Mapping[str, int]:
        return {"questions": len(record["questions"])}


def one_example_per_question(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Records of pictures -> examples as `localized_narratives.OUTPUT_FEATURES` says, in order."""

    def of_picture(record: dict[str, Any]) -> tf.data.Dataset:
        number = tf.shape(record["questions"]["question_id"], tf.int64)[0]

        def example(k: tf.Tensor) -> dict[str, tf.Tensor]:
            item = {key: value[k] for key, value in record["questions"].items()}
            words = tf.shape(item["word_spans"])[0]
            return {
                "image": record["image"],
                "image_id": record["image_id"],
                "example_id": item["question_id"],
                "text": item["answer"],
                "instruction": item["question"],
                "instructions": item["question"][None],
                "word_spans": item["word_spans"],
                "word_boxes": tf.zeros((words, 4)),
                "word_points": tf.zeros((words, alignment.NUM_POINTS, 2)),
                "word_centers": tf.zeros((words, 2)),
                "word_located": tf.zeros((words,), tf.bool),
                "object_boxes": tf.zeros((0, 4)),
                "object_names": tf.zeros((0,), tf.string),
            }

        return tf.data.Dataset.range(number).map(example)

    return dataset.flat_map(of_picture)


def register(name: str, builder_name: str | None = None) -> None:
    """Registers the Task `name` over the set `builder_name` (else `name`), once."""
    if name in seqio.TaskRegistry.names():
        return
    seqio.TaskRegistry.add(
        name,
        source=sources.TfdsFolder(builder_name or name, decoders={"image": tfds.decode.SkipDecoding()}),
        preprocessors=[one_example_per_question],
        output_features=ln.OUTPUT_FEATURES,
        metric_fns=[],  # nothing to locate
    )
