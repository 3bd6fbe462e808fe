"""Proof: every published stage, with T5 and with BERT, makes three steps on drawn scenes.

    make proof NAME=stages         # resumable: a stage that was run is not run again

Each is the experiment with its losses, rates, frozen parts, layer decay, augmentation and groups of batches, at a tiny
size and a warm-up of one step: of every part that is to be trained something has to move, and nothing else. Writes
docs/proof/stages.json and a table of docs/recipes.md; `make test` samples it (tests/experiments/test_stages.py).
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.progress

from experiments import record
from experiments.proofs.recipes import PRESETS, STAGES
from pixel_align import data, models, optim, param_rules, state, text
from pixel_align.batch import Shape
from pixel_align.config import load
from pixel_align.data import DataConfig
from pixel_align.experiment import Experiment
from pixel_align.models.pixel_llm import PixelLLMConfig
from pixel_align.nn.image_features import FusionConfig
from pixel_align.nn.mask_adapter import MaskAdapterConfig
from pixel_align.nn.mask_decoder import MaskDecoderConfig
from pixel_align.train import make_train_step

CANVAS, STEPS = 64, 3
# What a part keeps of the stage when it becomes tiny.
KEPT = ("frozen", "layer_decay", "lr_multiplier", "enabled", "masks", "padding_tokens", "lora", "presence")
MIXTURES = {
    "trace_stage": "synthetic_narratives",
    "localized_narratives_coco": "synthetic_narratives",
    "coco_captions": "synthetic_narratives",
    "refcoco_mixed": "synthetic_expressions",
    "ref_stage": "synthetic_expressions",
    "visual_genome_densecap": "synthetic_densecap",
    "sharegpt4v_mix665k_short": "synthetic_questions",
    "sharegpt4v_mix665k_long": "synthetic_questions",
}


def make_world(folder: Path) -> None:
    """Drawn scenes with all that is told about them, built, and two vocabularies of their words."""
    from data_pipelines import localized_narratives, synthetic, synthetic_regions

    files = synthetic.write(synthetic.easy(), folder / "raw", 12, seed=0, also=("expressions", "regions", "questions"))
    inputs = localized_narratives.Inputs(
        annotations=(str(files.narratives),), images=(str(files.images),), instances=str(files.instances)
    )
    localized_narratives.build(folder / "data", "train", inputs, name="synthetic_narratives")
    synthetic_regions.build(folder / "data", files, "train")
    captions = [json.loads(line)["caption"] for line in files.narratives.read_text(encoding="utf-8").splitlines()]
    text.train_sentencepiece(captions, folder / "t5.model", 100, model_type="bpe")
    text.train_wordpiece(captions, folder / "bert.txt", 64)


def tiny(part: Any) -> Any:
    """A part of a stage's model at its tiny size, with all that is said about how it is trained."""
    kept = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.name in KEPT}
    if isinstance(part, MaskAdapterConfig | MaskDecoderConfig):
        kept["width"] = 64
    return type(part).tiny(**kept)


def at_tiny_size(config: Experiment, world: Path, vocabulary: text.Vocabulary) -> Experiment:
    """The stage: its losses, rates, frozen parts and groups of batches, of other sizes, on other data."""

    def smaller(shape: Shape) -> Shape:
        # Distinct lengths stay distinct: which text goes into which batch is part of what is tried.
        finds = min(shape.regions, 4)
        return dataclasses.replace(
            shape,
            canvas=CANVAS,
            regions=finds,
            prompts=min(shape.prompts, finds),
            text=max(6, shape.text // 6),
            instruction=6,
            described=min(shape.described, 12),
            mask=min(shape.mask, CANVAS),
        )

    model = config.model
    assert isinstance(model, PixelLLMConfig) and isinstance(model.image, FusionConfig)
    small = dataclasses.replace(
        model,
        shape=smaller(model.shape),
        image=FusionConfig(eva=tiny(model.image.eva), sam=tiny(model.image.sam)),
        prompt=tiny(model.prompt),
        extractor=tiny(model.extractor),
        text=dataclasses.replace(tiny(model.text), vocab_size=vocabulary.size),
        location=tiny(model.location),
        detector=tiny(model.detector),
        masks=dataclasses.replace(model.masks, decoder=tiny(model.masks.decoder), adapter=tiny(model.masks.adapter)),
    )
    return dataclasses.replace(
        config,
        model=small,
        data=DataConfig(
            modules=("data_pipelines.localized_narratives", "data_pipelines.synthetic_regions"),
            mixture=MIXTURES[config.data.mixture],
            dir=str(world / "data"),
            batch_size=2,
            augment=config.data.augment,
            further=tuple(
                dataclasses.replace(group, mixture=MIXTURES[group.mixture], batch_size=2, shape=smaller(group.shape))
                for group in config.data.further
                if group.shape is not None
            ),
            workers=1,
            prefetch=1,
        ),
        optim=dataclasses.replace(config.optim, warmup_steps=1),
        train=dataclasses.replace(config.train, steps=STEPS + 1),
        evals=(),
    )


def trained(config: Experiment, vocabulary: text.Vocabulary) -> tuple[Any, Any, list[dict[str, float]]]:
    """Parameters before and after three steps, and what was said of each."""
    family = models.family_of(config.model)
    rules, params = family.rules(config.model), jax.jit(lambda: state.init_params(config))()
    before = jax.tree.map(np.asarray, params)
    optimizer = optim.optimizer(config.optim, config.train.steps, params, rules)
    now = state.make_state(config, params, rules, optimizer)
    step = jax.jit(make_train_step(config, optimizer))
    streams = [(read, family.converter(model, vocabulary, read.augment)) for model, read in config.batches()]
    said = []
    with data.Steps(streams, None) as steps:
        for _ in range(STEPS):
            now, metrics = step(now, next(steps)[0])
            said.append({name: float(value) for name, value in metrics.items()})
    return before, jax.tree.map(np.asarray, now.params), said


def check(config: Experiment, before: Any, after: Any, said: list[dict[str, float]]) -> list[str]:
    """The parts that moved.

    Raises:
      ValueError: a loss that is not there, not finite or nothing, a parameter that should not have moved, or a part of
        which none did that should have.
    """
    model = config.model
    assert isinstance(model, PixelLLMConfig)
    shapes = [shape for one, _ in config.batches() if (shape := one.shape)]
    read = {reading.mixture for _, reading in config.batches()}
    # Expressions are read, not said; answers and dense captions have no places.
    expected = {"text"} if model.loss.text and read - {"synthetic_expressions"} else set()
    expected |= {"point"} if model.loss.point and read & {"synthetic_narratives", "synthetic_expressions"} else set()
    expected |= {"mask"} if any(shape.mask for shape in shapes) else set()
    if any(shape.described for shape in shapes):
        expected |= {f"detector_{name}" for name in ("heat", "proposal_boxes", "foreground", "refinement")}
    for step, metrics in enumerate(said):
        missing = [name for name in expected if not 0 < metrics.get(f"loss_{name}", 0.0) < float("inf")]
        if missing or not np.isfinite(list(metrics.values())).all():
            raise ValueError(f"losses of step {step} are {metrics}, expected finite ones of {', '.join(expected)}.")
    rules = models.family_of(model).rules(model)
    meant = param_rules.paths(param_rules.match(rules["trainable"], before))
    old, new = param_rules.paths(before), param_rules.paths(after)
    moved = {path for path in old if not np.array_equal(old[path], new[path])}

    def part(path: str) -> str:
        return "/".join(path.split("/")[: 2 if path.startswith("image/") else 1])

    if wrong := sorted(path for path in moved if not meant[path]):
        raise ValueError(f"frozen parameters {', '.join(wrong)} moved, expected none.")
    parts, asked = {part(path) for path in moved}, {part(path) for path in old if meant[path]}
    if parts != asked:
        raise ValueError(f"parts that moved are {', '.join(sorted(parts))}, expected {', '.join(sorted(asked))}.")
    return sorted(parts)


def main() -> None:
    found, commit = record.ROOT / "docs" / "proof" / "stages.json", record.commit()
    known = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else {}
    # The record itself is what a start that was killed leaves changed.
    rows = known.get("rows", {}) if known.get("commit") == commit.removesuffix("-dirty") else {}
    with tempfile.TemporaryDirectory() as folder, rich.progress.Progress() as progress:
        world = Path(folder)
        bar = progress.add_task("stages", total=len(STAGES) * len(PRESETS))
        make_world(world)
        for stage in STAGES:
            for preset in PRESETS:
                name = f"{stage}:{preset}"
                if name not in rows:
                    vocabulary = text.load_vocabulary(world / ("bert.txt" if preset == "bert" else "t5.model"))
                    config = at_tiny_size(load(f"experiments/{stage}.py:{preset}"), world, vocabulary)
                    before, after, said = trained(config, vocabulary)
                    rows[name] = {
                        "moved": check(config, before, after, said),
                        "losses": [step["loss"] for step in said],
                    }
                    record.write(
                        "stages",
                        {
                            "command": "make proof NAME=stages",
                            "commit": commit,
                            "machine": record.machine(),
                            "rows": rows,
                        },
                    )
                progress.advance(bar)
    lines = ["| stage | loss at steps 1, 2, 3 | parts that moved |", "|---|---|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {', '.join(f'{one:.3f}' for one in row['losses'])} | {', '.join(row['moved'])} |")
    lines += ["", f"`make proof NAME=stages`, commit {commit}, {record.machine()}."]
    record.fill(record.ROOT / "docs" / "recipes.md", "\n".join(lines), mark="stages")


if __name__ == "__main__":
    main()
