"""What every comparison does: measure, hold to the tolerance, leave a golden and a row of docs/parity.md."""

import functools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.goldens.cases import FOLDER, TOLERANCE, Case

_ROOT = Path(__file__).resolve().parents[2]
_REPORT, _TABLE = _ROOT / "docs" / "proof" / "parity.json", _ROOT / "docs" / "parity.md"
_NOISE = 1e-5  # a golden is written again only where it moves by more than another machine's rounding

Report = Callable[..., None]
Compare = Callable[[Case, list[np.ndarray], str], None]


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """report(part, setting, against, largest difference, largest value): a row of docs/parity.md."""
    rows: dict[str, dict[str, object]] = {}

    def report(part: str, setting: str, against: str, difference: float, largest: float, name: str = "") -> None:
        rows[f"{name or part}, {against}"] = {
            "part": part,
            "setting": setting,
            "against": against,
            "largest difference": float(f"{difference:.1e}"),
            "largest value": round(largest, 2),
            "commit": _commit(),
        }

    yield report
    if rows:
        _report(rows)


@pytest.fixture(scope="session")
def compare(report: Report) -> Compare:
    """compare(case, what the other implementation answered, its name and version)."""

    def compare(case: Case, theirs: list[np.ndarray], against: str) -> None:
        ours = case.ours()
        assert [x.shape for x in ours] == [x.shape for x in theirs]
        pairs = [(a.astype(np.float32), b.astype(np.float32)) for a, b in zip(ours, theirs, strict=True)]
        difference = max(float(np.abs(a - b).max()) for a, b in pairs)
        largest = max(float(np.abs(b).max()) for _, b in pairs)
        print(f"{case.name}: largest difference {difference:.1e}, largest value {largest:.2f}")
        assert difference < TOLERANCE
        report(case.part, case.setting, against, difference, largest, case.name)
        _leave_golden(case, theirs)

    return compare


def _leave_golden(case: Case, theirs: list[np.ndarray]) -> None:
    path = FOLDER / f"{case.name}.npz"
    if path.exists():
        golden = case.golden()
        same = [a.shape for a in golden] == [b.shape for b in theirs]
        if same and all(np.abs(a.astype(np.float32) - b).max() < _NOISE for a, b in zip(golden, theirs, strict=True)):
            return
    np.savez_compressed(path, **{f"out_{i}": x for i, x in enumerate(theirs)})


@functools.cache
def _commit() -> str:
    """The commit of this checkout, with a plus where the package differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git(
        "status", "--porcelain", "pixel_align/nn", "pixel_align/evaluation", "tests/goldens/*.py", "tests/parity"
    )
    return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)


def _report(rows: dict[str, dict[str, object]]) -> None:
    """Adds the rows of this run to the report and writes the table from it."""
    known = json.loads(_REPORT.read_text())["rows"] if _REPORT.exists() else {}
    rows = dict(sorted({**known, **rows}.items()))
    _REPORT.parent.mkdir(parents=True, exist_ok=True)
    _REPORT.write_text(json.dumps({"command": "make parity", "rows": rows}, indent=1) + "\n")
    lines = [*_HEAD.strip().splitlines()]
    ordered = sorted(rows.values(), key=lambda row: (str(row["part"]), str(row["setting"]), str(row["against"])))
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in ordered]
    lines += ["", _NOTES.strip(), ""]
    _TABLE.write_text("\n".join(lines))


_HEAD = f"""
# Parity

Our parts against other implementations: the same small drawn weights and inputs, float32 on a CPU. `make parity`
measures, writes `docs/proof/parity.json` and this table from it, and leaves the other implementations' answers in
`tests/goldens`, which `make test` checks without them. Every difference is held under {TOLERANCE:.0e}; those of metrics
under what tests/parity/test_captioning.py (real captions and our own adversarial ones) and tests/parity/test_regions.py
(drawn regions and traces) say. A row whose other implementation was not there in the last run stands as it was measured
before, at its commit.

| part | setting | against | largest difference | of values up to | commit |
|---|---|---|---|---|---|
"""

_NOTES = """
timm imports torchvision, which has to be of torch's own build; where it cannot be imported, its comparisons are
skipped. The measured ones had torchvision's operators declared without being there: EVA-02 calls none of them.

Differences that are meant:

- Position tables: "antialiased" is `jax.image.resize`, as the published PixelLLM resizes them, and agrees with torch's
  `interpolate(antialias=True)`; "torch" is torch's plain `interpolate`, as transformers and EVA's own code resize them.
- The epsilon inside EVA-02's SwiGLU is 1e-5, as in the published PixelLLM; timm has 1e-6 there. SAM's two-way
  transformer has 1e-5, as in its release; transformers' default is 1e-6. Both are set to the published values here.
"""
