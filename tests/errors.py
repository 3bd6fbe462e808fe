"""Every error that a user can mend, shown once: `python -m tests.errors` writes docs/errors.md from what is said.

tests/test_cli.py runs the same commands and compares.
"""

import contextlib
import io
import json
import os
import pickle
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "errors.md"

MINE = """\"\"\"The experiment of tests/tiny.py on the data that lies here.\"\"\"
import dataclasses
from tests import tiny

def get_config():
    experiment = tiny.without_evaluations(tiny.get_config())
    here = dataclasses.replace(experiment.data, dir="data", vocabulary="vocabulary.model")
    return dataclasses.replace(experiment, data=here)
"""

BUILD = "python -m data_pipelines build localized_narratives"
OWN, REFER, REGIONS = (
    f"python -m data_pipelines build {options} --images photos --out built"
    for options in ("own", "refcoco --name refcocog_umd", "visual_genome")
)
FOLDER = "pixel-align predict twins --checkpoint runs/tiny --out answers"


class Case(NamedTuple):
    """A command that fails. `blocked`: modules as if not installed. `begun`: it has shown progress before."""

    why: str
    command: str
    blocked: tuple[str, ...] = ()
    begun: bool = False


CASES = (
    Case("No such picture", "pixel-align predict nowhere.jpg --checkpoint runs/tiny"),
    Case("Not a picture", "pixel-align predict notes.txt --checkpoint runs/tiny"),
    Case("Half a picture", "pixel-align predict half.png --checkpoint runs/tiny"),
    Case("No checkpoint there", "pixel-align predict photo.png --checkpoint data"),
    Case("Unknown mode", "pixel-align predict photo.png --checkpoint runs/tiny --mode detect"),
    Case(
        "A text where none is wanted",
        "pixel-align predict photo.png --checkpoint runs/tiny --mode caption --text 'a red circle'",
    ),
    Case(
        "A text that is too long",
        f"pixel-align predict photo.png --checkpoint runs/tiny --text '{' '.join(['circle'] * 40)}'",
    ),
    Case("A result that is no picture", "pixel-align predict photo.png --checkpoint runs/tiny --out out.txt"),
    Case("A result in no folder", "pixel-align predict photo.png --checkpoint runs/tiny --json results/out.json"),
    Case("No such experiment", "pixel-align train experiments/refcoco2.py --workdir runs/new"),
    Case("Unknown preset", "pixel-align train experiments/localized_narratives.py:huge --workdir runs/new"),
    Case("Unknown setting", "pixel-align train mine.py --workdir runs/new --set optim.peek_lr=1e-3"),
    Case("A value of a wrong type", "pixel-align train mine.py --workdir runs/new --set optim.peak_lr=fast"),
    Case("No value", "pixel-align train mine.py --workdir runs/new --set optim.peak_lr"),
    Case("No vocabulary", "pixel-align train mine.py --workdir runs/new --set data.vocabulary="),
    Case("No such vocabulary", "pixel-align train mine.py --workdir runs/new --set data.vocabulary=spiece.model"),
    Case(
        "A vocabulary of another size", "pixel-align train mine.py --workdir runs/new --set model.text.vocab_size=512"
    ),
    Case("No data folder", "pixel-align train mine.py --workdir runs/new --set data.dir=nowhere"),
    Case("A data folder without the set", "pixel-align train mine.py --workdir runs/new --set data.dir=raw"),
    Case("Unknown task", "pixel-align train mine.py --workdir runs/new --set data.mixture=synthetic_narrative"),
    Case("Unknown split", "pixel-align evaluate --checkpoint runs/tiny --task synthetic_narratives --split test"),
    Case("Unknown task of an evaluation", "pixel-align evaluate --checkpoint runs/tiny --task synthetic_narrative"),
    Case(
        "A batch that the devices do not divide", "pixel-align train mine.py --workdir runs/new --set data.batch_size=9"
    ),
    Case("Resuming with another model", "pixel-align train mine.py --workdir runs/tiny --set model.text.mlp_dim=32"),
    Case(
        "A first checkpoint that does not fit",
        "pixel-align train mine.py --workdir runs/new --set init.checkpoint=runs/tiny "
        "--set model.location.hidden_width=32",
    ),
    Case("No number any more", "pixel-align train mine.py --workdir runs/nan --set optim.peak_lr=1e30", begun=True),
    Case(
        "The extra of data is not installed",
        "pixel-align train mine.py --workdir runs/new",
        ("seqio", "tensorflow", "tensorflow_datasets"),
    ),
    Case("No annotation file", f"{BUILD} --annotations nowhere.jsonl --images photos --out built"),
    Case("An empty annotation file", f"{BUILD} --annotations empty.jsonl --images photos --out built", begun=True),
    Case("No image folder", f"{BUILD} --annotations narratives.jsonl --images nowhere --out built"),
    Case(
        "An image folder without the annotated images",
        f"{BUILD} --annotations narratives.jsonl --images photos --out built",
        begun=True,
    ),
    Case("x, y, width, height where corners are expected", f"{OWN} --annotations xywh.jsonl", begun=True),
    Case("Corners where x, y, width, height are expected", f"{REGIONS} --annotations corners.json", begun=True),
    Case("A box outside its picture", f"{REGIONS} --annotations outside.json", begun=True),
    Case("A mask of another size than its picture", f"{REGIONS} --annotations small_mask.json", begun=True),
    Case("An expression for a missing image", f"{REFER} --refer lost", begun=True),
    Case("Half a file of instances", f"{REFER} --refer cut"),
    Case("Half a list of regions", f"{REGIONS} --image-data image_data.json --annotations cut.json", begun=True),
    Case("A pickle with code in it", f"{REFER} --refer code"),
    Case("A format that cannot hold the answers", f"{FOLDER} --mode trace --format coco"),
    Case("Two pictures of one name", f"{FOLDER} --mode caption --format coco"),
)


def furnish(folder: Path, world: Path, run: Path) -> None:
    """Lays out what the commands name: a world and a run of tests/tiny.py, and files that are not what they are for."""
    import PIL.Image

    for name in ("data", "raw"):
        (folder / name).symlink_to(world / name)
    shutil.copy(world / "vocabulary.model", folder)
    shutil.copytree(run, folder / "runs" / "tiny")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    (folder / "mine.py").write_text(MINE)
    (folder / "notes.txt").write_text("no picture\n")
    PIL.Image.effect_noise((64, 48), 50).save(folder / "photo.png")
    (folder / "half.png").write_bytes((folder / "photo.png").read_bytes()[:700])
    (folder / "photos").mkdir()
    shutil.copy(folder / "photo.png", folder / "photos" / "holiday.png")
    (folder / "empty.jsonl").touch()
    shutil.copy(world / "raw" / "train" / "narratives.jsonl", folder)
    (folder / "twins").mkdir()
    for name in ("000000000007.png", "7.png"):
        shutil.copy(folder / "photo.png", folder / "twins" / name)
    furnish_regions(folder)


class Code:
    """What a pickle may ask for: to have Python run something."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("open('touched', 'w')",)


def furnish_regions(folder: Path) -> None:
    """Annotations of regions of photos/holiday.png, 64 x 48, each wrong in one way."""
    image = {"id": 1, "file_name": "holiday.png", "width": 64, "height": 48}

    def write(name: str, *regions: dict[str, Any]) -> None:
        annotations = [{"id": k, "image_id": 1, "caption": f"thing {k}", **one} for k, one in enumerate(regions)]
        (folder / name).write_text(json.dumps({"images": [image], "annotations": annotations}))

    own = {"file": "holiday.png", "regions": [{"phrase": "the sea", "box": [40, 30, 20, 15]}]}
    (folder / "xywh.jsonl").write_text(json.dumps(own) + "\n")
    write("corners.json", *({"bbox": [20 + k, 12, 58, 40]} for k in range(3)))
    write("outside.json", {"bbox": [70, 10, 20, 20]})
    write("small_mask.json", {"bbox": [4, 4, 20, 20], "segmentation": {"size": [24, 32], "counts": [100, 600, 68]}})
    whole = json.dumps([{"id": 1, "regions": [{"region_id": 1, "phrase": "the sea", "x": 1, "y": 2}]}])
    (folder / "cut.json").write_text(whole[: len(whole) // 2])
    (folder / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 64, "height": 48, "coco_id": None}]))
    sentence = {"sent_id": 1, "sent": "the sea", "raw": "The sea."}
    ref = {"ref_id": 5, "ann_id": 9, "image_id": 2, "split": "val", "sentences": [sentence]}
    thing = {"id": 9, "image_id": 2, "bbox": [4, 4, 20, 20]}
    instances = json.dumps({"images": [image], "annotations": [thing]})
    for name, refs, text in (
        ("lost", [ref], instances),
        ("cut", [ref], instances[: len(instances) // 2]),
        ("code", [ref, Code()], instances),
    ):
        (folder / name / "refcocog").mkdir(parents=True)
        (folder / name / "refcocog" / "refs(umd).p").write_bytes(pickle.dumps(refs))
        (folder / name / "refcocog" / "instances.json").write_text(text)


def run(case: Case, folder: Path) -> tuple[Any, str, str]:
    """(exit code, standard output, standard error) of a case's command, run in `folder` by this process."""
    from absl import logging

    out, err, code = io.StringIO(), io.StringIO(), 0
    verbosity = logging.get_verbosity()
    blocked = {
        name: None
        for name in list(sys.modules)
        if name.partition(".")[0] in case.blocked or (case.blocked and name.startswith("data_pipelines."))
    }
    names = dict.fromkeys(case.blocked) | {n: None for n in blocked if n.partition(".")[0] in case.blocked}
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ),
        # What is imported on the way stays: a module cannot be imported again without harm.
        mock.patch.dict(sys.modules, names) if names else contextlib.nullcontext(),
    ):
        for name in blocked.keys() - names.keys():
            del sys.modules[name]  # to be imported anew, and to fail
        try:
            code = _main(shlex.split(case.command))
        except SystemExit as left:
            code = left.code
        finally:
            logging.set_verbosity(verbosity)
    return code, out.getvalue(), err.getvalue()


def _main(words: list[str]) -> Any:
    if words[0] == "pixel-align":
        from pixel_align.cli import main

        return main(words[1:])
    from data_pipelines.__main__ import main as build

    assert words[:3] == ["python", "-m", "data_pipelines"]
    return build(words[3:])


def error_lines(standard_error: str) -> list[str]:
    """What a command says in the end, without the progress that it showed before."""
    return [line for line in standard_error.splitlines() if line.startswith("error: ")]


def document(said: dict[str, list[str]]) -> str:
    """docs/errors.md: command -> what it says."""
    parts = [
        "# What goes wrong, and what is said\n",
        "What can be mended by whoever typed the command is one line on standard error and exit code 2:",
        "`<what> is <got>, expected <expected>. <what to do>.` Anything else is a fault of the program and shows its",
        "traceback; `PIXEL_ALIGN_TRACEBACK=1` shows it for these as well. Written by `python -m tests.errors`.\n",
    ]
    for case in CASES:
        parts += [f"**{case.why}**\n", "```", f"$ {case.command}", *said[case.command], "```\n"]
    return "\n".join(parts)


@contextlib.contextmanager
def furnished() -> Iterator[Path]:
    """A folder in which the commands can be run, made from nothing."""
    from pixel_align import config, train
    from tests import tiny

    with tempfile.TemporaryDirectory() as name:
        world, workdir, folder = (Path(name) / part for part in ("world", "run", "here"))
        folder.mkdir()
        tiny.make_world(world)
        train.train(config.load(tiny.__file__, tiny.in_world(world)), workdir)
        furnish(folder, world, workdir)
        yield folder


def main() -> None:
    """Writes docs/errors.md."""
    with furnished() as folder:
        said = {case.command: error_lines(run(case, folder)[2]) for case in CASES}
    DOCUMENT.write_text(document(said), encoding="utf-8")
    print(json.dumps({"cases": len(CASES), "document": DOCUMENT.name}))


if __name__ == "__main__":
    # The settings of the tests: the same devices, the same messages.
    import tests.conftest  # noqa: F401

    main()
