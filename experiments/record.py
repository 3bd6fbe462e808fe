"""What every record of a measurement holds: the commit that ran, the machine, and the page that is made from it."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """The commit that ran, with a mark if files differ from it; "unknown" outside git."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def machine() -> str:
    """The kind of machine: "x86_64, 2 CPU cores"."""
    return f"{platform.machine()}, {os.cpu_count()} CPU cores"


def write(name: str, result: dict[str, Any]) -> None:
    """docs/proof/NAME.json, whole or as it was."""
    path = ROOT / "docs" / "proof" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def fill(page: Path, content: str, mark: str = "table") -> None:
    """Puts a table between its two marks of a page of docs.

    Raises:
      ValueError: the page lacks a mark.
    """
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    text = page.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"page {page} lacks {begin} or {end}, expected both. Put them where the table belongs.")
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n{content}\n{end}{after}", encoding="utf-8")
