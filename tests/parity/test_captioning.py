"""Caption metrics against pycocoevalcap and the two Java programs that it runs."""

import csv
import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixel_align.evaluation import captioning, meteor
from pixel_align.evaluation.ptb_tokenizer import tokenize
from tests.goldens import captioning as sentences

pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed (extra eval)")
pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="no java on the path"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # pycocoevalcap leaves pipes open
]
_AGAINST = "pycocoevalcap 1.2"
_NUMBER = 2_000


@pytest.fixture(scope="module")
def real(samples: Path) -> list[str]:
    """All distinct captions of the samples: COCO, narratives, Visual Genome, referring expressions, fake results."""
    found: list[str] = []
    for file in sorted((samples / "coco" / "annotations").glob("captions_*.json")):
        found += [record["caption"] for record in json.loads(file.read_text())["annotations"]]
    for file in sorted((samples / "localized_narratives").glob("*.jsonl")):
        found += [json.loads(line)["caption"] for line in file.read_text().splitlines()]
    for file in sorted((samples / "visual_genome").glob("region_descriptions*.json")):
        found += [region["phrase"] for image in json.loads(file.read_text()) for region in image["regions"]]
    with (samples / "refcoco" / "google_refexp_val_5000.csv").open() as file:
        found += [record["refexp"] for record in csv.DictReader(file)]
    found += [
        record["caption"] for record in json.loads((samples / "eval/captions_val2014_fakecap_results.json").read_text())
    ]
    return [" ".join(caption.splitlines()) for caption in dict.fromkeys(found)]


@pytest.fixture(scope="module")
def pairs(real: list[str]) -> list[tuple[list[str], str]]:
    """2,000 groups of references and a caption: half real, half adversarial; some of them close to each other."""
    rng = random.Random(0)
    captions = rng.sample(real, 3 * _NUMBER)
    return [
        *itertools.islice(sentences.groups(captions, 1), _NUMBER // 2 - 100),
        # An edit of the reference: word order, repeated words.
        *(
            [[text], " ".join(rng.choices(text.split(), k=len(text.split())))]
            for text in captions[-100:]
            if text.split()
        ),
        *itertools.islice(sentences.groups(sentences.adversarial(5 * _NUMBER, 2), 2), _NUMBER // 2),
    ]


@pytest.fixture
def jar() -> Any:
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _their_tokens(captions: list[str]) -> list[str]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    return [found[i][0] for i in range(len(captions))]


def test_tokens(real: list[str], report: Any) -> None:
    adversarial = sentences.adversarial(_NUMBER)
    for kind, captions, least in (("real", real, 1.0), ("adversarial", adversarial, 0.995)):
        theirs = _their_tokens(captions)
        differ = [i for i, caption in enumerate(captions) if tokenize(caption) != theirs[i]]
        for i in differ:
            print(f"{captions[i]!r}\n  ours   {tokenize(captions[i])!r}\n  theirs {theirs[i]!r}")
        assert len(differ) <= (1 - least) * len(captions)
        setting = f"{len(captions):,} {kind} captions; share that differ"
        report("PTB tokens", setting, _AGAINST, len(differ) / len(captions), 1.0, f"PTB tokens, {kind}")


def test_bleu_rouge_cider(pairs: list[tuple[list[str], str]], report: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rows = [captioning.row({"captions": references}, {"text": text}) for references, text in pairs]
    ours, corpus = captioning.each(rows), captioning.summary(rows)
    truths = {i: [tokenize(reference) for reference in references] for i, (references, _) in enumerate(pairs)}
    said = {i: [tokenize(text)] for i, (_, text) in enumerate(pairs)}
    bleu, bleu_each = Bleu(4).compute_score(truths, said)
    theirs = {f"BLEU-{n}": (bleu[n - 1], bleu_each[n - 1]) for n in range(1, 5)}
    theirs |= {"ROUGE-L": Rouge().compute_score(truths, said), "CIDEr": Cider().compute_score(truths, said)}
    capsys.readouterr()
    for name, (score, scores) in theirs.items():
        difference = max(abs(corpus[name] - score), float(np.abs(ours[name] - np.array(scores)).max()))
        assert difference < 1e-6
        report(name, f"{len(pairs):,} captions, each and all together", _AGAINST, difference, float(np.max(scores)))


def test_meteor(pairs: list[tuple[list[str], str]], jar: Any, report: Any) -> None:
    for kind, change in (("tokenised", tokenize), ("as written", _one_line)):
        cases = [([change(reference) for reference in references], change(text)) for references, text in pairs]
        corpus, scores = jar.compute_score(
            dict(enumerate(r for r, _ in cases)), {i: [t] for i, (_, t) in enumerate(cases)}
        )
        counts = [meteor.statistics(references, text) for references, text in cases]
        difference = np.abs(np.array([meteor.score(c) for c in counts]) - np.array(scores))
        for i in np.flatnonzero(difference > 1e-3).tolist():
            print(f"{cases[i]}: ours {meteor.score(counts[i])}, theirs {scores[i]}")
        assert (difference <= 1e-3).mean() >= 0.995
        total = abs(meteor.score(meteor.total(counts)) - corpus)
        assert total < 1e-3
        far = int((difference > 1e-3).sum())
        setting = f"{len(cases):,} captions {kind}, each and all together; {far} differ by more than 0.001"
        largest = max(float(difference.max()), total)
        report("METEOR 1.5", setting, "meteor-1.5.jar", largest, max(scores), f"METEOR, {kind}")


def test_files_of_captions_as_corpora(samples: Path, jar: Any, report: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """COCO's captions, each against the others of its picture, and the published fake results against all of them; from
    the raw texts on, each side with its own tokeniser.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    known: dict[int, list[str]] = {}
    corpora: dict[str, list[tuple[list[str], str]]] = {}
    for file in sorted((samples / "coco" / "annotations").glob("captions_*.json")):
        of_file: dict[int, list[str]] = {}
        for record in json.loads(file.read_text())["annotations"]:
            of_file.setdefault(record["image_id"], []).append(record["caption"])
        known |= of_file
        corpora[file.stem] = [
            ([*texts[:k], *texts[k + 1 :]], text) for texts in of_file.values() for k, text in enumerate(texts)
        ]
    for folder in (samples / "eval", samples / "eval" / "coco_caption"):
        found = json.loads((folder / "captions_val2014_fakecap_results.json").read_text())
        name = "fake results" + " of coco-caption" * (folder.name == "coco_caption")
        corpora[name] = [(known[r["image_id"]], r["caption"]) for r in found if r["image_id"] in known]
    for name, pairs in corpora.items():
        rows = [
            captioning.row({"captions": references}, {"text": text}, metrics=captioning.ALL_METRICS)
            for references, text in pairs
        ]
        ours = captioning.summary(rows)
        truths = PTBTokenizer().tokenize({i: [{"caption": r} for r in refs] for i, (refs, _) in enumerate(pairs)})
        said = PTBTokenizer().tokenize({i: [{"caption": text}] for i, (_, text) in enumerate(pairs)})
        theirs = {**_corpus_scores(truths, said), "METEOR": jar.compute_score(truths, said)[0]}
        capsys.readouterr()
        for metric, least in (("METEOR", 1e-3), *((key, 1e-6) for key in theirs if key != "METEOR")):
            assert abs(ours[metric] - theirs[metric]) < least, (name, metric)
        difference = max(abs(ours[metric] - value) for metric, value in theirs.items())
        setting = f"{name}, one corpus of {len(pairs)}: BLEU-1 to 4, ROUGE-L, CIDEr, METEOR"
        report("captions", setting, f"{_AGAINST}, from raw texts", difference, max(theirs.values()), f"corpus {name}")


def test_goldens(jar: Any) -> None:
    """Leaves the originals' answers about some of our own sentences."""
    captions = sentences.adversarial(300, seed=4)
    tokens = dict(zip(captions, _their_tokens(captions), strict=True))
    groups = [([tokens[r] for r in references], tokens[text]) for references, text in sentences.groups(captions, 4)]
    groups += sentences.PARAPHRASED
    truths, said = dict(enumerate(r for r, _ in groups)), {i: [text] for i, (_, text) in enumerate(groups)}
    answers = [jar._stat(text, references) for references, text in groups]
    corpus, scores = jar.compute_score(truths, said)
    golden = {
        "tokens": tokens,
        "meteor": [
            [references, text, [int(float(count)) for count in answer.split()], score]
            for (references, text), answer, score in zip(groups, answers, scores, strict=True)
        ],
        "METEOR": corpus,
        **_corpus_scores(truths, said),
    }
    text = json.dumps(golden, ensure_ascii=False, indent=0) + "\n"
    if not sentences.PATH.exists() or json.loads(sentences.PATH.read_text("utf-8")) != json.loads(text):
        sentences.PATH.write_text(text, "utf-8")


def _corpus_scores(truths: dict[int, list[str]], said: dict[int, list[str]]) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu = Bleu(4).compute_score(truths, said, verbose=0)[0]
    scores = {f"BLEU-{n}": bleu[n - 1] for n in range(1, 5)}
    scores |= {"ROUGE-L": Rouge().compute_score(truths, said)[0], "CIDEr": Cider().compute_score(truths, said)[0]}
    return {name: float(score) for name, score in scores.items()}


def _one_line(text: str) -> str:
    return " ".join(text.replace("|||", " ").splitlines())
