"""Proof: what `pixel-align score` says of a reader whose faults are known.

    python -m experiments.proofs.score

Scenes are drawn with expressions that name one object by what it is (attribute), by its size, or by where it is beside
another (relation). The reader is made up: it understands three expressions of five; of the others it hears the first
name and no places, so that it takes the object whose full name has most of those words, the largest of several; and its
hand shakes by up to two pixels. By attribute it must always be right, by relation less often, and table and sheet must
show that. Writes docs/proof/score.json and docs/score.png. Some seconds; nothing to resume.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from data_pipelines import refcoco, region_masks, synthetic
from pixel_align import cli

_DOCS = Path(__file__).resolve().parents[2] / "docs"
_UNDERSTANDS = 0.6  # of the expressions
_SHAKES = 2  # pixels
_WIDTH = 1_600  # of the kept sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        files = synthetic.write(
            synthetic.PRESETS["default"](), out, args.scenes, 0, "validation", also=("expressions",)
        )
        instances = json.loads(files.instances.read_text())
        targets = expressions(files, instances)
        (out / "targets.json").write_text(json.dumps(targets))
        (out / "predictions.json").write_text(json.dumps(read(targets, instances)))
        arguments = ["score", "pixel_llm", str(out / "predictions.json"), str(out / "targets.json")]
        cli.app([*arguments, "--out", str(out / "score"), "--images", str(files.images)], standalone_mode=False)
        found = json.loads((out / "score" / "metrics.json").read_text())
        kept = {key: value for key, value in found.items() if key not in ("predictions", "targets")}
        command = f"python -m experiments.proofs.score --scenes {args.scenes}"
        text = json.dumps({"command": command, **kept}, indent=1)
        (_DOCS / "proof" / "score.json").write_text(text + "\n")
        with PIL.Image.open(out / "score" / "report.png") as sheet:
            small = sheet.resize((_WIDTH, round(sheet.height * _WIDTH / sheet.width)), PIL.Image.Resampling.LANCZOS)
            small.quantize(256, dither=PIL.Image.Dither.NONE).save(_DOCS / "score.png", optimize=True)


def expressions(files: synthetic.Files, instances: Mapping[str, Any]) -> dict[str, Any]:
    """COCO json with an annotation for each expression; its split is its kind."""
    objects = {str(one["id"]): one for one in instances["annotations"]}
    annotations = [
        {
            **objects[region.object_id],
            "refexp_id": region.region_id,
            "refexp": region.text,
            "split": synthetic.kind_of(region.region_id),
        }
        for picture in refcoco.read_refer(files.instances.parent, "refcoco_unc")["validation"]
        for region in picture.regions
    ]
    return {"images": instances["images"], "annotations": annotations}


def read(targets: Mapping[str, Any], instances: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the reader says: PixelLLM's predictions."""
    rng = np.random.default_rng(0)
    names = {one["id"]: set(one["name"].split()) for one in instances["categories"]}
    heads = {one["supercategory"] for one in instances["categories"]}
    sizes = {one["id"]: (one["height"], one["width"]) for one in instances["images"]}
    objects: dict[int, list[Mapping[str, Any]]] = {}
    for one in sorted(instances["annotations"], key=lambda one: -one["area"]):
        objects.setdefault(one["image_id"], []).append(one)
    said = []
    for target in targets["annotations"]:
        words = target["refexp"].split()
        first = next((k for k, word in enumerate(words, 1) if word in heads), len(words))
        heard = set(words[:first])
        taken = max(objects[target["image_id"]], key=lambda one: len(heard & names[one["category_id"]]))
        if rng.random() < _UNDERSTANDS:
            taken = target
        dx, dy = rng.integers(-_SHAKES, _SHAKES + 1, 2).tolist()
        mask = region_masks.draw(taken["segmentation"], sizes[target["image_id"]])
        x, y, width, height = taken["bbox"]
        said.append(
            {
                "id": target["refexp_id"],
                "image_id": target["image_id"],
                "bbox": [x + dx, y + dy, width, height],
                "segmentation": region_masks.as_json(np.roll(mask, (dy, dx), axis=(0, 1))),
            }
        )
    return said


if __name__ == "__main__":
    main()
