"""What every build of pictures asks and says on the command line: its options, its report."""

import argparse
import os
from collections.abc import Mapping
from typing import Any

from data_pipelines.building import Built, Inputs


def add_arguments(parser: argparse.ArgumentParser, unit: str) -> None:
    """Options that are alike for all sets; `unit` is what their annotations are, in the plural."""
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="DIR", help="folders with the pictures, named by image id"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="data folder; the set goes to DIR/NAME/VERSION")
    parser.add_argument(
        "--max-skipped",
        default=Inputs.max_skipped,
        metavar="N|N%",
        help=f"{unit} that may be left out, bad or without picture (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels", type=int, default=Inputs.max_pixels, help="larger pictures are refused (default: %(default)s)"
    )
    parser.add_argument(
        "--max-side", type=int, default=Inputs.max_side, help="larger pictures are reduced (default: %(default)s)"
    )
    parser.add_argument("--shards", type=int, help="number of files (default: by the number of pictures)")
    parser.add_argument(
        "--threads", type=int, default=min(8, os.cpu_count() or 1), help="for reading pictures (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Inputs` that the options above give."""
    return {
        "images": tuple(args.images),
        "max_skipped": args.max_skipped,
        "max_pixels": args.max_pixels,
        "max_side": args.max_side,
        "threads": args.threads,
    }


def describe(built: Built, unit: str, counts: Mapping[str, tuple[int, str]]) -> str:
    """The report of a build as a small table.

    Args:
      unit: what may be left out. counts: name -> (how many, what more to say of it).
    """
    report = built.report
    already = [] if built.fresh else ["already built from these inputs; --overwrite builds again"]
    lines = [
        *already,
        f"{report['name']} {report['version']}, split {report['split']}: {built.folder}",
        f"  pictures    {report['pictures']:>12,}   in {report['shards']} shards, {report['bytes'] / 1e6:,.1f} MB",
    ]
    lines += [f"  {name:<12}{count:>12,}   {more}".rstrip() for name, (count, more) in counts.items()]
    lines += [f"  left out    {report['skipped']['total']:>12,}   {unit}"]
    lines += [f"    {reason}: {count:,}" for reason, count in report["skipped"]["counts"].items()]
    named = report["skipped"]["named"]
    lines += [f"      {name}" for name in named[:10]]
    if len(named) > 10:
        lines.append(f"      ... more in {built.folder}/build_report-{report['split']}.json")
    mended = report.get("mended", {})
    if mended:
        lines.append(f"  mended      {sum(mended.values()):>12,}")
        lines += [f"    {what}: {count:,}" for what, count in mended.items()]
    return "\n".join(lines)
