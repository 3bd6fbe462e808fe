"""Large JSON lists, read in parts: what comes out does not depend on where the parts end."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import DataError, json_input

VALUES: list[Any] = [
    1.5, -12e-3, 0, 12345678901234567890, True, None, "", "],[\\\"{", "\u00e9\u2028\U0001f600", "\n", [], {},
    [[1, [2]], ","], {"a": {"]": [1, "}"]}, "b": "x" * 50}, "\\", [1], 7,
]  # fmt: skip


@pytest.mark.parametrize("part", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize(("indent", "ascii_only"), [(None, True), (2, False)])
def test_elements_are_those_of_the_whole_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, indent: int | None, ascii_only: bool
) -> None:
    monkeypatch.setattr(json_input, "_PART", part)
    text = "\ufeff \r\n" + json.dumps(VALUES, indent=indent, ensure_ascii=ascii_only) + " \t\n"
    path = tmp_path / "list.json"
    for content in (text.encode(), gzip.compress(text.encode())):
        path.write_bytes(content)
        assert list(json_input.elements(path, "file")) == VALUES
    path.write_text(" [ ] ")
    assert list(json_input.elements(path, "file")) == []


@pytest.mark.parametrize("part", [1, 5, 10_000])
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "it is no list"),
        ("{}", "it is no list"),
        ("[", "Expecting value, character 1"),
        ("[1,", "nothing|Expecting value, character 3"),
        ("[1, ]", "nothing follows the comma before character 4"),
        ('["abc', "Unterminated string starting at, character 1"),
        ("[1 2]", "it ends or goes astray at character 3"),
        ("[1.]", "it ends or goes astray at character 2"),
        ("[1, 2", "it ends or goes astray at character 5"),
        ("[1, 2] 3", "more follows behind its end, character 7"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_broken_list_is_named_whatever_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, text: str, fault: str
) -> None:
    if len(text) > 1000 and part == 1:
        part = 1000
    monkeypatch.setattr(json_input, "_PART", part)
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"file .*list.json' is broken .*({fault}).*, expected a whole JSON list"):
        list(json_input.elements(path, "file"))


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    for content in (gzip.compress(b"[1, 2]")[:-9], b"[1, \xff]", b"\x1f\x8b[]"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is broken"):
            list(json_input.elements(path, "file"))
        with pytest.raises(DataError, match="is broken"):
            json_input.load(path, "file")


def test_memory_holds_a_part_of_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_input, "_PART", 10_000)
    path = tmp_path / "list.json"
    path.write_text(json.dumps(["x" * 1_000] * 3_000))
    tracemalloc.start()
    try:
        assert sum(len(one) for one in json_input.elements(path, "file")) == 3_000_000
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
