"""Places and questions of written scenes, as TFDS sets and seqio Tasks.

`build` reads what `synthetic.write` wrote as any reader of RefCOCO, Visual Genome and LLaVA would. Importing this
module registers the Tasks `synthetic_expressions` (refer; figures also for each kind of expression),
`synthetic_regions` (describe), `synthetic_densecap` (the same set, densecap) and `synthetic_questions` (answer).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines import DataError, llava, questions, refcoco, regions, synthetic, visual_genome
from data_pipelines.building import Built
from data_pipelines.regions import Picture, Region

EXPRESSIONS, REGIONS, QUESTIONS = "synthetic_expressions", "synthetic_regions", "synthetic_questions"
DENSECAP = "synthetic_densecap"  # the set REGIONS, all of it asked for at once


def build(
    out: str | os.PathLike[str], files: synthetic.Files, split: str, *, overwrite: bool = False, **settings: Any
) -> dict[str, Built]:
    """Builds the sets EXPRESSIONS, REGIONS and QUESTIONS, those whose files were written; {set: what came of it}.

    The id of an expression ends in its kind, "1000017:relation".

    Args:
      split: the split that was written.
      settings: shards, max_skipped, threads ... of `regions.build`.

    Raises DataError where none was written, or a file is broken.
    """
    built: dict[str, Built] = {}
    images, more = [files.images], {"overwrite": overwrite, **settings}
    if files.refs:
        read = [files.refs, files.instances]
        built[EXPRESSIONS] = regions.build(
            out, EXPRESSIONS, split, _expressions(files, split), images, files=read, **more
        )
    if files.region_descriptions and files.image_data:
        read = [files.region_descriptions, files.image_data]
        found = visual_genome.read(files.region_descriptions, files.image_data)
        pictures = [_ours(picture, split, picture.regions) for picture in found]
        built[REGIONS] = regions.build(out, REGIONS, split, pictures, images, files=read, **more)
    if files.questions:
        asked = f"synthetic_{split}"
        built[QUESTIONS] = llava.build(
            out, QUESTIONS, split, [files.questions], images=images, dataset_id=asked, **more
        )
    if not built:
        raise DataError(
            f"files of {split} are {files.instances.parent}, expected expressions, regions or questions among them. "
            "Write them with also=('expressions', 'regions', 'questions')."
        )
    return built


def _expressions(files: synthetic.Files, split: str) -> list[Picture]:
    found = refcoco.read_refer(files.instances.parent, "refcoco_unc")[split]
    return [_ours(picture, split, [_of_kind(region) for region in picture.regions]) for picture in found]


def _of_kind(region: Region) -> Region:
    return dataclasses.replace(region, region_id=f"{region.region_id}:{synthetic.kind_of(region.region_id)}")


def _ours(picture: Picture, split: str, found: Sequence[Region]) -> Picture:
    """The same picture under our own name: it is none of COCO's and none of Visual Genome's."""
    return dataclasses.replace(picture, dataset_id=f"synthetic_{split}", name="", regions=found)


def scores(targets: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`regions.referring_scores` and `P@0.5_<kind>` of each kind of expression that there is.

    Args:
      targets: also with region_id [K], which end in ":<kind>".
    """
    figures = regions.referring_scores(targets, predictions)
    for kind in synthetic.KINDS:
        chosen = [
            [k for k, name in enumerate(target["region_id"]) if name.rpartition(":")[2] == kind] for target in targets
        ]
        if any(chosen):
            of_kind = regions.referring_scores(
                [_some(target, ks, ("region_text", "boxes")) for target, ks in zip(targets, chosen, strict=True)],
                [_some(found, ks, ("boxes",)) for found, ks in zip(predictions, chosen, strict=True)],
            )
            figures[f"P@0.5_{kind}"] = of_kind["P@0.5"]
    return figures


def _some(case: Mapping[str, Any], rows: Sequence[int], keys: Sequence[str]) -> dict[str, Any]:
    return {key: [case[key][k] for k in rows] for key in keys}


regions.register(EXPRESSIONS, "refer", score=scores)
regions.register(REGIONS, "describe", score=regions.describe_scores)
regions.register(DENSECAP, "densecap", REGIONS)
questions.register(QUESTIONS)
