"""Questions about pictures and their answers -> a TFDS set, one record per picture -> seqio Tasks.

A question is a region of the whole picture that is asked about in words: an example is what `regions` says at
OUTPUT_FEATURES, with a question for each region, and the region's text is the answer. Readers of data sets (`llava`,
`own_data`) turn their publishers' files into lines as `QuestionSet.parse` reads them.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import building, regions, sources
from data_pipelines.narratives import BadRecord, Dropped, Skipped
from pixel_align.text import INSTRUCTIONS

_MOST_TEXT = 20_000  # characters of a question or an answer


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about a picture, with its answer."""

    image_id: str
    dataset_id: str
    question: str
    answer: str
    name: str = ""  # of the picture, see `pixel_align.evaluation.seen`; "" = from dataset_id and image_id


class QuestionSet(building.PictureSet):
    """One record per picture: the picture, its questions and their answers, in the order in which they came."""

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
                    }
                ),
            }
        )

    @staticmethod
    def parse(line: bytes) -> Question:
        """See PictureSet. A reader may say `problem`, what is wrong, or `dropped`, what is right but no question."""
        fields = json.loads(line)
        if fields.get("problem"):
            raise BadRecord(fields["problem"])
        if fields.get("dropped"):
            raise Dropped(fields["dropped"])
        for key in ("question", "answer"):
            value = fields.get(key)
            if not isinstance(value, str) or not value.strip() or len(value) > _MOST_TEXT:
                raise BadRecord(f"{key} is {value!r:.100}, expected 1 to {_MOST_TEXT:,} characters")
        for key in ("question", "answer", "image_id"):
            if any("\ud800" <= char <= "\udfff" for char in fields[key]):
                raise BadRecord(f"{key} holds half of a surrogate pair, expected text that UTF-8 can spell")
        question, answer = (fields[key].strip() for key in ("question", "answer"))
        return Question(fields["image_id"], fields["dataset_id"], question, answer, fields.get("name", ""))

    @classmethod
    def image_name(cls, annotation: Question) -> str:
        return annotation.name or super().image_name(annotation)

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
                {"question_id": f"{picture.image_id}#{k}", "question": item.question, "answer": item.answer}
                for k, item in enumerate(found)
            ],
        }

    @staticmethod
    def count(record: Mapping[str, Any]) -> Mapping[str, int]:
        return {"questions": len(record["questions"])}


# An example: a picture with its K questions, each about the whole of it.
OUTPUT_FEATURES = {
    **regions.OUTPUT_FEATURES,  # asks: "answer"; instruction: {question} stands for each region's question
    "region_question": regions.OUTPUT_FEATURES["region_text"],  # [K]; region_text: its answer
}


def as_examples(
    dataset: tf.data.Dataset, instruction: str, fewest: int = 0, most: int | None = None
) -> tf.data.Dataset:
    """Records -> examples as OUTPUT_FEATURES says.

    fewest, most: characters that an answer has, both included; questions with others are passed over, and pictures
    without any that is left.
    """

    def example(record: dict[str, Any]) -> dict[str, tf.Tensor]:
        asked = record["questions"]
        length = tf.strings.length(asked["answer"], unit="UTF8_CHAR")
        kept = (length >= fewest) & (length <= (most or length.dtype.max))
        question_id, question, answer = (
            tf.boolean_mask(asked[key], kept) for key in ("question_id", "question", "answer")
        )
        number = tf.size(question_id)
        nothing = tf.fill([number], "")
        return {
            "image": record["image"],
            "image_id": record["image_id"],
            "example_id": record["image_id"],
            "asks": tf.constant("answer"),
            "instruction": tf.constant(instruction),
            "region_id": question_id,
            "object_id": nothing,
            "region_question": question,
            "region_text": answer,
            "region_box": tf.tile([[0.0, 0.0, 1.0, 1.0]], [number, 1]),
            "region_mask": nothing,
        }

    examples = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return examples.filter(lambda one: tf.size(one["region_id"]) > 0)


def scores(targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics of answers: of each example region_text [K] in targets, texts [K] in predictions.

    Returns:
      exact, VQA_style: see `pixel_align.evaluation.answers`.
    """
    from pixel_align.evaluation import answers

    return answers.summary(
        [
            answers.row({"answers": [text]}, {"text": told})
            for target, predicted in zip(targets, predictions, strict=True)
            for text, told in zip(target["region_text"], predicted["texts"], strict=True)
        ]
    )


def register(name: str, builder_name: str | None = None, fewest: int = 0, most: int | None = None) -> None:
    """Registers the Task `name` over the set `builder_name` (else `name`), once; fewest, most: see `as_examples`."""
    if name in seqio.TaskRegistry.names():
        return
    seqio.TaskRegistry.add(
        name,
        source=sources.TfdsFolder(builder_name or name, decoders={"image": tfds.decode.SkipDecoding()}),
        preprocessors=[
            functools.partial(as_examples, instruction=INSTRUCTIONS["answer"], fewest=fewest, most=most),
        ],
        output_features=OUTPUT_FEATURES,
        metric_fns=[scores],
    )
