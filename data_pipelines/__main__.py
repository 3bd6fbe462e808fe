"""Command line of the data sets: `python -m data_pipelines build SET ...`, `... inspect SET ...`, `... list`."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import logging

from data_pipelines import DataError

# Sets that can be built: module, what it is. A module is imported only when its set is asked for: TensorFlow costs
# seconds.
SETS = {
    "coco_captions": ("data_pipelines.coco_captions", "five sentences for each picture, COCO json + pictures"),
    "flickr30k_entities": ("data_pipelines.flickr30k_entities", "phrases of captions with boxes, txt + xml + pictures"),
    "llava": ("data_pipelines.llava", "questions and answers, LLaVA's and ShareGPT4V's json + pictures"),
    "localized_narratives": (
        "data_pipelines.localized_narratives",
        "spoken captions with a mouse path, jsonl + pictures",
    ),
    "own": ("data_pipelines.own_data", "your own pictures: captions, traces, expressions, regions, questions; jsonl"),
    "refcoco": ("data_pipelines.refcoco", "expressions that name an object, RefCOCO, RefCOCO+, RefCOCOg + pictures"),
    "visual_genome": ("data_pipelines.visual_genome", "descriptions of regions, Visual Genome json + pictures"),
}

# What the extra [data] brings.
EXTRA = ("seqio", "tensorflow", "tensorflow_datasets", "tensorflow_text")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 2 where the input is at fault, said in one line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m data_pipelines", description="Build, look at and list data sets.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    sets = "\n".join(f"  {name:<24}{what}" for name, (_, what) in sorted(SETS.items()))
    building = verbs.add_parser(
        "build",
        help="make a TFDS set from the publisher's files",
        usage="python -m data_pipelines build SET [options]",
        epilog=f"sets:\n{sets}\n\n`python -m data_pipelines build SET --help` says the options of a set.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,  # after the name of a set, --help asks for the set's options
    )
    building.add_argument("set", choices=sorted(SETS), nargs="?", metavar="SET", help="which set; see below")
    verbs.add_parser("inspect", help="draw examples of a built set into one picture", add_help=False)
    listing = verbs.add_parser("list", help="sets that can be built, and those that are there")
    listing.add_argument(
        "--data-dir", default=os.environ.get("TFDS_DATA_DIR"), metavar="DIR", help="default: $TFDS_DATA_DIR"
    )
    args, rest = parser.parse_known_args(arguments)
    if args.verb == "list":
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        print(describe(args.data_dir))
        return 0
    if args.verb == "inspect":
        return _run("data_pipelines.inspect", "inspect", "Draw examples of a built set.", rest)
    if args.set is None:
        if not {"-h", "--help"} & set(rest):
            building.error("the following arguments are required: SET")
        building.print_help()
        return 0
    return _run(SETS[args.set][0], f"build {args.set}", SETS[args.set][1], rest)


def _run(name: str, command: str, description: str, arguments: Sequence[str]) -> int:
    """Imports a module and has it do as the arguments say. What a user can mend is one line and exit code 2."""
    # TensorFlow and TFDS speak of their own affairs; both must be told before they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # nothing is computed here; on, it announces itself
    logging.set_verbosity(logging.ERROR)
    try:
        module = _import(name)
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        advice = "Install it: pip install 'pixel-align[data]'."
        print(f"error: module {error.name!r} is not installed, expected it for data. {advice}", file=sys.stderr)
        return 2
    options = argparse.ArgumentParser(prog=f"python -m data_pipelines {command}", description=description)
    module.add_arguments(options)
    try:
        module.main(options.parse_args(arguments))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, no room on the disk, a file where a folder should be
        what = "a file" if error.filename is None else repr(error.filename)
        said = f"{what} is of no use ({error.strerror or error}), expected one to read or write."
        print(f"error: {said} Mend that or choose another place.", file=sys.stderr)
        return 2
    return 0


def _import(name: str) -> ModuleType:
    module = importlib.import_module(name)
    if name == "data_pipelines.inspect":  # any Task may be asked for
        for other, _ in SETS.values():
            importlib.import_module(other)
    return module


def describe(data_dir: str | None) -> str:
    """The sets that can be built and, where a data folder is given, the splits that lie in it."""
    lines = ["Can be built:"]
    lines += [f"  {name:<24}{what}" for name, (_, what) in sorted(SETS.items())]
    if data_dir is None:
        return "\n".join([*lines, "Built: give --data-dir or set $TFDS_DATA_DIR to see."])
    lines.append(f"Built, in {data_dir}:")
    found = sorted(Path(data_dir).glob("*/*/dataset_info.json"))
    for path in found:
        info = json.loads(path.read_text(encoding="utf-8"))
        for split in info.get("splits", []):
            records = sum(map(int, split["shardLengths"]))
            lines.append(f"  {info['name']}/{info['version']:<10}{split['name']:<14}{records:>10,} records")
    return "\n".join(lines if found else [*lines, "  nothing"])


if __name__ == "__main__":
    sys.exit(main())
