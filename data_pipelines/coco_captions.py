"""COCO captions: five sentences for each picture. The publisher's json -> a TFDS set -> a seqio Task.

    python -m data_pipelines build coco_captions --annotations captions_train2017.json --images train2017 --out DATA

A caption is a narrative that nobody timed: the set has the records of `localized_narratives`, the Task its examples,
one for each caption, and no word has a place; `coco_captions_pictures` has one for each picture, to be scored in mode
"caption". Importing this module registers both. Published evaluation crops the middle: Eval(transform="center_crop").
Source: https://cocodataset.org (Chen et al., arXiv 1504.00325).
"""

import argparse
import functools
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import DataError, sources
from data_pipelines import localized_narratives as ln
from data_pipelines.narratives import annotation_files
from pixel_align.evaluation import seen

NAME = "coco_captions"
PICTURES = f"{NAME}_pictures"

# What reading a file raises that is none of ours.
_OTHER = (ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError, gzip.BadGzipFile, zlib.error)

# What a user may say to ask for a caption; evaluation always asks with the first.
INSTRUCTIONS = (
    "Describe the image in one sentence.",
    "Caption this image.",
    "Write a short caption.",
    "What is in the picture?",
    "Give a brief description.",
    "Sum up the picture.",
    "Say shortly what the photo shows.",
    "A one-line caption, please.",
    "Describe the photo briefly.",
    "In a few words, what is this?",
    "Name what happens in the image.",
    "Give the picture a caption.",
    "Tell in short what you see.",
)


def read_lines(patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Captions of one or several captions files as lines of narratives, as (where, line); files may be gzipped.

    Raises DataError where a name finds no file, or a file holds no COCO captions.
    """
    for path in annotation_files(patterns):
        annotations, files = _content(path)
        for annotation in annotations:
            # Some captions end with a space or a new line. What is missing or no text is refused as in any narrative.
            caption = annotation.get("caption")
            record: dict[str, Any] = {
                "dataset_id": path.name.partition(".")[0],
                "image_id": _image_id(annotation.get("image_id"), files),
                "annotator_id": 0,  # COCO does not tell
                "caption": caption.strip() if isinstance(caption, str) else caption,
                "timed_caption": [],
                "traces": [],
            }
            yield f"{path.name}: caption {annotation.get('id')}", json.dumps(record).encode()


def _image_id(number: Any, files: Mapping[Any, str]) -> Any:
    """The number of a picture; where its file is called otherwise, the name of that without suffix.

    Captions of other pictures than COCO's are written in this form too, and found by their files.
    """
    if not isinstance(number, int) or number not in files:
        return number
    file = files[number]
    ours = seen.canonical("coco", file) == seen.canonical("coco", number)
    return number if ours else PurePosixPath(file).with_suffix("").as_posix()


def _content(path: Path) -> tuple[list[dict[str, Any]], dict[Any, str]]:
    """The annotations of one captions file, and {image id: file name} as far as it says them."""
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
        annotations = content["annotations"]
        images = [image for image in content.get("images", ()) if isinstance(image.get("file_name"), str)]
        files = {image["id"]: image["file_name"] for image in images}
        if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
            raise TypeError("annotations is no list of objects")
    except _OTHER as error:
        raise DataError(
            f"captions file {str(path)!r} is broken ({type(error).__name__}: {error}), expected COCO captions: images, "
            "annotations. Check --annotations."
        ) from error
    if not any("caption" in annotation for annotation in annotations):
        raise DataError(
            f"captions file {str(path)!r} holds {len(annotations)} annotations and no caption, expected "
            "captions_<split>.json. Check --annotations."
        )
    return annotations, files


class CocoCaptions(ln.LocalizedNarratives):
    """One record per picture: the picture, its captions, its named objects where a COCO instances file is given."""

    DESCRIPTION = "Pictures with about five written captions each; no word has a place."
    HOMEPAGE = "https://cocodataset.org"
    COLLECTION = "coco"  # whatever the file is called

    @staticmethod
    def read_lines(patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        return read_lines(patterns)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m data_pipelines build coco_captions`."""
    ln.add_arguments(parser, files="captions_<split>.json, plain or gzipped; globs", name=NAME)


def main(args: argparse.Namespace) -> None:
    """Builds as the options say and prints what came of it."""
    ln.main(args, CocoCaptions)


def one_example_per_picture(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Records -> examples to be evaluated: a picture with all its `captions` [K]; `text` is the first of them."""

    def example(record: dict[str, Any]) -> dict[str, tf.Tensor]:
        captions = record["narratives"]["caption"]
        nothing = {
            "word_spans": tf.zeros([0, 2], tf.int32),
            "word_boxes": tf.zeros([0, 4]),
            "word_points": tf.zeros([0, 16, 2]),
            "word_centers": tf.zeros([0, 2]),
            "word_located": tf.zeros([0], tf.bool),
        }
        return {
            "image": record["image"],
            "image_id": record["image_id"],
            "example_id": record["image_id"],
            "text": captions[0],
            "instruction": tf.constant(INSTRUCTIONS[0]),
            "instructions": tf.constant(list(INSTRUCTIONS)),
            "captions": captions,
            **nothing,
            "object_boxes": record["objects"]["box"],
            "object_names": record["objects"]["name"],
        }

    return dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def caption_scores(targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """BLEU, ROUGE-L, CIDEr against all captions of a picture, and METEOR where its tables are installed.

    Args:
      targets: of each picture `captions`. predictions: of each `text`.
    """
    from pixel_align.evaluation import captioning

    pairs = list(zip(targets, predictions, strict=True))
    for names in (captioning.ALL_METRICS, captioning.METRICS):
        try:
            return captioning.summary([captioning.row(*pair, metrics=names) for pair in pairs])
        except ModuleNotFoundError:
            continue
    raise AssertionError("the plain metrics need no tables")


if NAME not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add(
        NAME,
        source=sources.TfdsFolder(NAME, decoders={"image": tfds.decode.SkipDecoding()}),
        preprocessors=[
            ln.one_example_per_narrative,
            functools.partial(ln.give_words_places, rule="text", instructions=INSTRUCTIONS),
        ],
        output_features=ln.OUTPUT_FEATURES,
        metric_fns=[],  # nothing to locate
    )
    seqio.TaskRegistry.add(
        PICTURES,
        source=sources.TfdsFolder(NAME, decoders={"image": tfds.decode.SkipDecoding()}),
        preprocessors=[one_example_per_picture],
        output_features={**ln.OUTPUT_FEATURES, "captions": ln.OUTPUT_FEATURES["object_names"]},
        metric_fns=[caption_scores],
    )
