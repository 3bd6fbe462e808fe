"""The benchmark of metrics, at a small scale: what it measures, and that its inputs are what they claim to be."""

import json
from pathlib import Path

import numpy as np
import pytest

from pixel_align.benchmark import metrics, rows
from pixel_align.cli import main


def phrases_file(folder: Path) -> Path:
    path = folder / "region_descriptions.json"
    drawn = [
        {
            "id": number,
            "regions": [
                {"region_id": i, "phrase": r.phrase, "x": r.box[0], "y": r.box[1], "width": 9, "height": 7}
                for i, r in enumerate(regions)
            ],
        }
        for number, regions in enumerate(metrics.draw_regions(3))
    ]
    path.write_text(json.dumps(drawn))
    return path


def test_the_command_measures_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["benchmark", "metrics", "--json", str(out), "--cases", "20", "--only", "referring_run_lengths"]
    with pytest.raises(SystemExit) as left:
        main([*words, "--phrases", str(phrases_file(tmp_path))])
    assert left.value.code == 0, capsys.readouterr().err
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["name"], row["cases"], row["unit"]) == ("referring_run_lengths", 20, "expressions")
    assert row["rate"] == pytest.approx(20 / row["seconds"]) and row["ratio"] > 0
    assert 2**24 < row["peak_bytes"] < 2**31 and "cores" in row["machine"] and row["commit"]
    assert "referring_run_lengths" in capsys.readouterr().out


def test_every_row_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java, whose start takes seconds: METEOR's ratios are then left out and said to be."""
    monkeypatch.setattr(metrics.shutil, "which", lambda name: None)
    pictures = metrics.draw_regions(4)
    for name, function in metrics.measurements().items():
        if name.startswith("meteor") or name == "dense_captioning":
            pytest.importorskip("pycocoevalcap", reason="METEOR's tables are those of pycocoevalcap: extra [eval]")
            pytest.importorskip("snowballstemmer", reason="METEOR's stems: extra [eval]")
        measured = function(pictures, 3)
        assert measured.name == name and measured.cases == 3 and measured.seconds > 0
        assert (measured.ratio is None) == (name.startswith("meteor") or name == "dense_captioning")
        json.dumps(rows.document(measured))


def test_pictures_are_as_large_as_the_test_set_of_visual_genome() -> None:
    drawn = list(metrics.draw_pictures(metrics.draw_regions(4), 3))
    for target, prediction in drawn:
        assert np.shape(target["boxes"]) == (40, 4) and len(target["captions"]) == 40
        assert prediction["boxes"].shape == (50, 4) and len(prediction["captions"]) == len(prediction["scores"]) == 50
        assert (prediction["boxes"][:, :2] < prediction["boxes"][:, 2:]).all()
    again = list(metrics.draw_pictures(metrics.draw_regions(4), 3))
    assert (drawn[2][1]["scores"] == again[2][1]["scores"]).all()


def test_phrases_of_visual_genome(samples: Path) -> None:
    pictures = metrics.read_regions(samples / "visual_genome" / "region_descriptions.json")
    assert sum(map(len, pictures)) == 4161
    assert all(region.box[0] < region.box[2] and region.phrase for regions in pictures for region in regions)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metrics", "--only", "speed"], "measurement is 'speed', expected one of dense_captioning"),
        (["metrics", "--phrases", "nowhere.json"], "phrases file is 'nowhere.json'"),
        (["metrics", "--json", "nowhere/rows.jsonl"], "folder of 'nowhere/rows.jsonl' does not exist"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["benchmark", *words])
    error = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(error) == 1 and said in error[0]


def test_a_file_without_regions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text('[{"regions": []}]')
    with pytest.raises(ValueError, match="expected described ones"):
        metrics.read_regions(path)
