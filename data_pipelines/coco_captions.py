"""COCO captions: five sentences for each picture. The publisher's json -> a TFDS set -> a seqio Task.

    python -m data_pipelines build coco_captions --annotations captions_train2017.json --images train2017 --out DATA

A caption is a narrative that nobody timed: the set has the records of `localized_narratives`, the Task its examples,
one for each caption, and no word has a place. Importing this module registers the Task. Source:
https://cocodataset.org (Chen et al., arXiv 1504.00325).
"""

import argparse
import functools
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow_datasets as tfds

from data_pipelines import DataError, sources
from data_pipelines import localized_narratives as ln
from data_pipelines.narratives import annotation_files

NAME = "coco_captions"

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
        for annotation in _annotations(path):
            # Some captions end with a space or a new line. What is missing or no text is refused as in any narrative.
            caption = annotation.get("caption")
            record: dict[str, Any] = {
                "dataset_id": path.name.partition(".")[0],
                "image_id": annotation.get("image_id"),
                "annotator_id": 0,  # COCO does not tell
                "caption": caption.strip() if isinstance(caption, str) else caption,
                "timed_caption": [],
                "traces": [],
            }
            yield f"{path.name}: caption {annotation.get('id')}", json.dumps(record).encode()


def _annotations(path: Path) -> list[dict[str, Any]]:
    """The annotations of one captions file."""
    try:
        content = path.read_bytes()
        annotations = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)["annotations"]
        if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
            raise TypeError("annotations is no list of objects")
    except (ValueError, KeyError, TypeError, EOFError, RecursionError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"captions file {str(path)!r} is broken ({type(error).__name__}: {error}), expected COCO captions: images, "
            "annotations. Check --annotations."
        ) from error
    if not any("caption" in annotation for annotation in annotations):
        raise DataError(
            f"captions file {str(path)!r} holds {len(annotations)} annotations and no caption, expected "
            "captions_<split>.json. Check --annotations."
        )
    return annotations


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
