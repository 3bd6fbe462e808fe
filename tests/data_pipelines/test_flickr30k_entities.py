"""Flickr30k Entities: phrases and boxes from the publisher's files, and XML that means harm."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines import DataError, flickr30k_entities
from data_pipelines.__main__ import main
from pixel_align.evaluation import seen
from tests.data_pipelines.drawn import examples, save_gray, texts

SENTENCES = """[/EN#1/people Two young men] with [/EN#2/bodyparts shaggy hair] look at [/EN#2/bodyparts their hands] .
[/EN#1/people Friends] stand in [/EN#0/notvisual the middle] of [/EN#4/scene the yard] .
[/EN#5/other/clothing A shirt] .
"""
ANNOTATION = """<annotation>
<filename>1000092795.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>4</xmin><ymin>8</ymin><xmax>20</xmax><ymax>40</ymax></bndbox></object>
<object><name>1</name><name>5</name>
  <bndbox><xmin>30</xmin><ymin>6</ymin><xmax>50</xmax><ymax>44</ymax></bndbox></object>
<object><name>2</name><bndbox><xmin>32</xmin><ymin>6</ymin><xmax>40</xmax><ymax>12</ymax></bndbox></object>
<object><name>4</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>"""
ID = "1000092795"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_gray(tmp_path / "images" / f"{ID}.jpg")
    for name, content in (
        (f"Sentences/{ID}.txt", SENTENCES),
        (f"Annotations/{ID}.xml", ANNOTATION),
        ("train.txt", f"{ID}\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def build(folder: Path) -> int:
    options = ["--entities", folder, "--images", folder / "images", "--out", folder / "out", "--splits", "train"]
    return main(["build", "flickr30k_entities", *map(str, options)])


def test_phrases_get_the_box_around_all_that_they_name(folder: Path) -> None:
    assert build(folder) == 0
    (example,) = examples(folder / "out", flickr30k_entities.NAME).values()
    assert texts(example["region_text"]) == ["Two young men", "shaggy hair", "their hands", "Friends", "A shirt"]
    assert texts(example["object_id"]) == [f"{ID}:{entity}" for entity in (1, 2, 2, 1, 5)]
    assert texts(example["region_id"]) == [f"{ID}#{place}" for place in ("0:0", "0:1", "0:2", "1:0", "2:0")]
    pixels = example["region_box"] * [64, 48, 64, 48]
    both, hair, shirt = [4, 6, 50, 44], [32, 6, 40, 12], [30, 6, 50, 44]
    np.testing.assert_allclose(pixels, [both, hair, hair, both, shirt], rtol=1e-6)
    names = seen.read(folder / "out" / flickr30k_entities.NAME / "1.0.0", "train")
    assert names == {ID: f"flickr30k:{ID}"}
    described = examples(folder / "out", "flickr30k_entities_regions")[ID]
    assert described["asks"] == b"describe"


GROWING = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>' + ANNOTATION.replace("1000092795.jpg", "&b;")
READING = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + ANNOTATION.replace("1000092795.jpg", "&a;")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Annotations", GROWING, "it declares a document type or an entity"),
        ("Annotations", READING, "it declares a document type or an entity"),
        ("Annotations", ANNOTATION[:-20], "is broken"),
        ("Annotations", "", "is broken"),
        ("Annotations", ANNOTATION.replace("height", "heigth"), "size/height is missing"),
        ("Annotations", ANNOTATION.replace("<xmin>4</xmin>", "<xmin>four</xmin>"), "could not convert string"),
        ("Annotations", ANNOTATION.replace("<ymin>8</ymin>", ""), "ymin is missing"),
        ("train.txt", "../../etc/passwd", "holds '../../etc/passwd', expected one image id"),
        ("train.txt", "", "expected one image id"),
        ("train.txt", "12", "Sentences/12.txt', expected one that exists"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    (folder / (f"Annotations/{ID}.xml" if name == "Annotations" else name)).write_text(content)
    assert build(folder) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], errors
    assert not list(folder.glob("out/*/[!.]*"))


def test_files_larger_than_any_real_one_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flickr30k_entities, "_MOST_BYTES", 100)
    with pytest.raises(DataError, match="expected at most 100"):
        list(flickr30k_entities.read(folder, [ID]))
