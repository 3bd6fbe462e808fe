"""Proof: a sweep of nine points on drawn scenes, from the command to its plot.

    make proof NAME=sweep                                    # into runs/sweep; killed, it goes on where it was
    make proof NAME=sweep ARGS="--steps 50 --scenes 200"

Draws and builds the demo's scenes, runs `experiments/sweeps.py:rates_and_places` on the demo's model (narratives alone,
from nothing) by `pixel-align sweep` as a user would, and keeps its table and its plot: docs/proof/sweep.json,
docs/sweep.png and the table of docs/sweeps.md.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from experiments import quickstart, record
from pixel_align.cli import quiet_libraries

METRICS = {"loss": "loss", f"{quickstart.NARRATIVES}-validation/point_distance": "point_distance"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=2_000)
    parser.add_argument("--slots", type=int, default=2)
    args = parser.parse_args()
    quiet_libraries()
    if not (args.workdir / quickstart.VOCABULARY).is_file():
        from data_pipelines import synthetic

        for name in ("raw", "data"):
            shutil.rmtree(args.workdir / name, ignore_errors=True)
        quickstart.prepare(args.workdir, synthetic.easy(), args.scenes, 64)

    evaluation = [{"task": quickstart.NARRATIVES, "mode": "trace", "limit": 64, "pictures": 1}]
    words = ["sweep", "experiments/sweeps.py:rates_and_places", "--experiment"]
    words += [f"{Path(quickstart.__file__).relative_to(record.ROOT)}:no_first_stage"]
    words += [f"--workdir={args.workdir}/runs", f"--slots={args.slots}", f"--set=train.steps={args.steps}"]
    words += [f"--set=data.dir={args.workdir}/data", f"--set=data.vocabulary={args.workdir}/{quickstart.VOCABULARY}"]
    words += [f"--set=optim.warmup_steps={min(100, args.steps // 2)}"]
    words += [f"--set=evals={json.dumps(evaluation)}", *(f"--metric={name}" for name in METRICS)]
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pixel_align", *words], cwd=record.ROOT, check=True)
    seconds = time.perf_counter() - begun

    found = json.loads((args.workdir / "runs" / "sweep.json").read_text(encoding="utf-8"))
    shutil.copyfile(args.workdir / "runs" / "sweep.png", record.ROOT / "docs" / "sweep.png")
    result = {
        "command": f"pixel-align {shlex.join(words)}",
        "commit": record.commit(),
        "machine": record.machine(),
        "seconds": round(seconds, 1),
        "scenes": args.scenes,
        "steps": args.steps,
        **found,
    }
    record.write("sweep", result)
    record.fill(record.ROOT / "docs" / "sweeps.md", table(result))


def table(result: dict) -> str:  # type: ignore[type-arg]
    """The rows as Markdown, and what ran."""
    axes = list(result["rows"][0]["axes"])
    lines = [f"| {' | '.join([*axes, 'state', *METRICS.values()])} |", "|---" * (len(axes) + 1 + len(METRICS)) + "|"]
    for row in result["rows"]:
        figures = [f"{row['figures'][name]:.4f}" if name in row["figures"] else "" for name in METRICS]
        lines.append(f"| {' | '.join([*(str(row['axes'][name]) for name in axes), row['state'], *figures])} |")
    said = f"{result['steps']} steps on {result['scenes']:,} scenes each, commit {result['commit']}"
    lines += ["", f"{said}, {result['machine']}, {result['seconds']:.0f} s in all.", ""]
    return "\n".join([*lines, "![loss and point_distance over the learning rate, a line for each weight](sweep.png)"])


if __name__ == "__main__":
    main()
