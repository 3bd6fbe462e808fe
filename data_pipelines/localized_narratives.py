"""Localized Narratives: spoken captions with a mouse path. The publisher's jsonl -> a TFDS set -> seqio Tasks.

    python -m data_pipelines build localized_narratives --annotations coco_train_*.jsonl --images train2017 --out DATA
    --split train

One record of the set is one picture with all its narratives; one example of a Task is one narrative. What an example
holds is said at `OUTPUT_FEATURES`. Importing this module registers the Tasks. Source:
https://google.github.io/localized-narratives (Pont-Tuset et al., ECCV 2020).
"""

import argparse
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines import building, options, sources
from data_pipelines.building import Built, Inputs
from data_pipelines.narrative_set import NAME, LocalizedNarratives
from pixel_align.evaluation import traces as trace_metrics

# What a user may say to ask for a narrative; evaluation always asks with the first.
INSTRUCTIONS = (
    "Describe the image in detail.",
    "Give a detailed description of the image.",
    "Write a long caption for this picture.",
    "Tell me everything you see in the picture.",
    "Describe every object in the image and where it is.",
    "Explain at length what the photo shows.",
    "Narrate the picture from beginning to end.",
    "What can be seen in this image? Answer in detail.",
    "Walk me through the contents of the picture.",
    "Provide a thorough description of the scene.",
    "Describe this picture to someone who cannot see it.",
)


def add_arguments(
    parser: argparse.ArgumentParser, files: str = "jsonl files, plain or gzipped; globs", name: str = NAME
) -> None:
    """The options of `python -m data_pipelines build localized_narratives`, and of sets that are built alike."""
    parser.add_argument("--annotations", nargs="+", required=True, metavar="FILE", help=files)
    parser.add_argument("--split", default="train", help="name of the split (default: %(default)s)")
    parser.add_argument("--name", default=name, help="name of the set (default: %(default)s)")
    parser.add_argument(
        "--instances", metavar="FILE", help="COCO instances json: stores the named objects of each picture"
    )
    options.add_arguments(parser, LocalizedNarratives.UNIT)


def main(args: argparse.Namespace, kind: type[LocalizedNarratives] = LocalizedNarratives) -> None:
    """Builds as the options say and prints what came of it."""
    inputs = Inputs(tuple(args.annotations), instances=args.instances, **options.settings(args))
    built = build(args.out, args.split, inputs, name=args.name, shards=args.shards, overwrite=args.overwrite, kind=kind)
    print(describe(built))


def build(
    out: str | os.PathLike[str],
    split: str,
    inputs: Inputs,
    *,
    name: str = NAME,
    shards: int | None = None,
    overwrite: bool = False,
    kind: type[LocalizedNarratives] = LocalizedNarratives,
) -> Built:
    """`building.build` of narratives."""
    return building.build(out, split, inputs, name=name, kind=kind, shards=shards, overwrite=overwrite)


def describe(built: Built) -> str:
    """The report of a build as a small table."""
    report = built.report
    located = f"{report['words_located'] / max(report['words'], 1):.1%} with a place"
    counts = {"narratives": "", "words": located, "objects": ""}
    return options.describe(built, "narratives", {key: (report[key], more) for key, more in counts.items()})


# The Tasks

_ANY = seqio.PassThroughVocabulary(size=1)  # Tasks know no vocabulary: text leaves them as text


def _feature(dtype: tf.DType, rank: int) -> seqio.Feature:
    return seqio.Feature(_ANY, add_eos=False, dtype=dtype, rank=rank)


# An example: one narrative of W words on a picture with K named objects. Frames: [0, 1] of the picture, boxes xyxy.
OUTPUT_FEATURES = {
    "image": _feature(tf.string, 0),  # encoded JPEG, upright RGB
    "image_id": _feature(tf.string, 0),
    "example_id": _feature(tf.string, 0),  # <image_id>#<k>
    "text": _feature(tf.string, 0),
    "instruction": _feature(tf.string, 0),  # what evaluation asks, "" = none
    "instructions": _feature(tf.string, 1),  # training asks with one of these
    "word_spans": _feature(tf.int32, 2),  # [W, 2], [start, end) in characters of the text
    "word_boxes": _feature(tf.float32, 2),  # [W, 4]
    "word_points": _feature(tf.float32, 3),  # [W, 16, 2]
    "word_centers": _feature(tf.float32, 2),  # [W, 2]
    "word_located": _feature(tf.bool, 1),  # [W], False: the word has no place, its rows above are zeros
    "object_boxes": _feature(tf.float32, 2),  # [K, 4]
    "object_names": _feature(tf.string, 1),  # [K]
}


def one_example_per_narrative(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Records of pictures -> records of narratives, in order; each carries its picture."""

    def narratives(record: dict[str, Any]) -> tf.data.Dataset:
        number = tf.shape(record["narratives"]["narrative_id"], tf.int64)[0]
        return tf.data.Dataset.range(number).map(
            lambda k: {**record, "narratives": {key: value[k] for key, value in record["narratives"].items()}}
        )

    return dataset.flat_map(narratives)


def give_words_places(
    dataset: tf.data.Dataset, rule: str, instructions: Sequence[str] = INSTRUCTIONS
) -> tf.data.Dataset:
    """Records of narratives -> examples as OUTPUT_FEATURES says. `rule`: "text" (ours) or "proportion" (published)."""

    def example(record: dict[str, Any]) -> dict[str, tf.Tensor]:
        narrative = record["narratives"]
        valid = narrative["utterance_valid"]
        utterance = (
            narrative["word_utterance"]
            if rule == "text"
            else _by_proportion(tf.shape(narrative["word_spans"])[0], valid)
        )
        # One more row, of zeros and not valid, stands for "no utterance"; rows without a place are zeros as well.
        nowhere = tf.size(valid)
        row = tf.where(utterance >= 0, utterance, nowhere)

        def of_words(key: str) -> tf.Tensor:
            rows = narrative[key]
            return tf.gather(tf.pad(rows, [[0, 1]] + [[0, 0]] * (rows.shape.rank - 1)), row)

        return {
            "image": record["image"],
            "image_id": record["image_id"],
            "example_id": narrative["narrative_id"],
            "text": narrative["caption"],
            "instruction": tf.constant(instructions[0]),
            "instructions": tf.constant(list(instructions)),
            "word_spans": narrative["word_spans"],
            "word_boxes": of_words("utterance_boxes"),
            "word_points": of_words("utterance_points"),
            "word_centers": of_words("utterance_centers"),
            "word_located": of_words("utterance_valid"),
            "object_boxes": record["objects"]["box"],
            "object_names": record["objects"]["name"],
        }

    return dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _by_proportion(num_words: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """`alignment.by_proportion` in a graph: int32[num_words] from bool[U]. A test holds the two together."""
    candidates = tf.cast(tf.where(valid)[:, 0], tf.int32)
    # A row far away keeps argmin defined where no utterance is valid; its words get -1.
    padded = tf.cond(tf.size(candidates) > 0, lambda: candidates, lambda: tf.constant([-1]))
    first, last = tf.cast(padded[0], tf.float64), tf.cast(padded[-1], tf.float64)
    steps = tf.cast(tf.range(1, num_words + 1), tf.float64) / tf.cast(tf.maximum(num_words, 1), tf.float64)
    distance = tf.abs((first + steps * (last - first))[:, None] - tf.cast(padded, tf.float64)[None, :])
    return tf.gather(padded, tf.argmin(distance, axis=1))


def trace_scores(targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The Task's metrics; see `pixel_align.evaluation.traces` for what both hold."""
    return trace_metrics.score(targets, predictions)


def register(name: str, builder_name: str | None = None) -> None:
    """Registers two Tasks over the set `builder_name` (else `name`), once.

    They are `name` with our alignment and `name`_proportional with the published rule. A Task is of no folder: see
    `sources.TfdsFolder`.
    """
    known = seqio.TaskRegistry.names()
    for task, rule in ((name, "text"), (f"{name}_proportional", "proportion")):
        if task in known:
            continue
        seqio.TaskRegistry.add(
            task,
            source=sources.TfdsFolder(builder_name or name, decoders={"image": tfds.decode.SkipDecoding()}),
            preprocessors=[one_example_per_narrative, functools.partial(give_words_places, rule=rule)],
            output_features=OUTPUT_FEATURES,
            metric_fns=[trace_scores],
        )


register(NAME)
# Narratives on the pictures of other sets: `build localized_narratives --name localized_narratives_flickr30k ...`.
# Image ids are file names there too: <number>.jpg (Flickr30k), <16 hexadecimal digits>.jpg (Open Images),
# ADE_train_<8 digits>.jpg in folders by scene (ADE20k).
register("localized_narratives_flickr30k")
register("localized_narratives_open_images")
register("localized_narratives_ade20k")
register("synthetic_narratives")  # scenes that `data_pipelines.synthetic` draws and tells
