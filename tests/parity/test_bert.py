"""BERT here and in transformers: its layers with the same weights, and how its tokeniser cuts. Run by `make parity`."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixel_align.nn.bert import ATTENTION_EPSILON, EMBEDDING_EPSILON, MLP_EPSILON
from pixel_align.text import WordPieceVocabulary, train_wordpiece
from tests.goldens import captioning, wordpiece
from tests.goldens.cases import CASES
from tests.parity.conftest import Compare

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CASE = CASES["bert"]
CONFIG = CASE.module.config


def _load(module: Any, state: dict[str, Any]) -> Any:
    module.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()})
    return module.eval()


def _dense(name: str, tree: Any) -> dict[str, Any]:
    return {f"{name}.weight": tree["kernel"].T, f"{name}.bias": tree["bias"]}


def _norm(name: str, tree: Any) -> dict[str, Any]:
    return {f"{name}.weight": tree["scale"], f"{name}.bias": tree["bias"]}


def test_logits_agree(compare: Compare) -> None:
    """Their embeddings and layers, given prefix and text as one sequence under the mask of a prefix decoder."""
    config = transformers.BertConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.width,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.num_heads,
        intermediate_size=CONFIG.mlp_dim,
        max_position_embeddings=CONFIG.positions,
        hidden_act="gelu",
        attn_implementation="eager",
    )
    bert, params = transformers.models.bert.modeling_bert, CASE.params()
    table = params["token_embedder"]
    embeddings = bert.BertEmbeddings(config)
    embeddings.LayerNorm.eps = EMBEDDING_EPSILON
    state = {
        "word_embeddings.weight": table["embedding"],
        "position_embeddings.weight": table["positions"],
        "token_type_embeddings.weight": np.zeros((config.type_vocab_size, CONFIG.width), np.float32),
        **_norm("LayerNorm", table["norm"]),
    }
    _load(embeddings, state)
    words, valid, tokens = (torch.tensor(x) for x in CASE.inputs)
    prefix, text = words.shape[1], tokens.shape[1]
    sees = torch.ones(prefix + text, prefix + text, dtype=torch.bool).tril()
    sees[:prefix, :prefix] = True
    exist = torch.cat([valid, torch.ones_like(tokens, dtype=torch.bool)], dim=1)
    mask = torch.where(sees & exist[:, None, :], 0.0, torch.finfo(torch.float32).min)[:, None]
    with torch.no_grad():
        x = torch.cat([embeddings(input_ids=words.long()), embeddings(input_ids=tokens.long())], dim=1)
        for index in range(CONFIG.layers):
            p = params[f"layers_{index}"]
            layer = bert.BertLayer(config)
            layer.attention.output.LayerNorm.eps = ATTENTION_EPSILON
            layer.output.LayerNorm.eps = MLP_EPSILON
            state = {
                **_norm("attention.output.LayerNorm", p["attention_norm"]),
                **_norm("output.LayerNorm", p["mlp_norm"]),
                **_dense("attention.output.dense", p["attention"]["out"]),
                **_dense("intermediate.dense", p["mlp"]["wi"]),
                **_dense("output.dense", p["mlp"]["wo"]),
            }
            for name in ("query", "key", "value"):
                state |= _dense(f"attention.self.{name}", p["attention"][name])
            answer = _load(layer, state)(x, attention_mask=mask)
            x = answer[0] if isinstance(answer, tuple) else answer
        head = params["logits_dense"]
        logits = x[:, prefix:].numpy() @ head["kernel"] + head["bias"]
    compare(CASE, [logits], f"transformers {transformers.__version__}, BertEmbeddings and BertLayer")


# ---- The tokeniser


def _theirs(path: Path) -> Any:
    pieces = path.read_text(encoding="utf-8").split("\n")[:-1]
    return transformers.BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})


def _tokens(theirs: Any, text: str) -> list[int]:
    return theirs(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_wordpiece(wordpiece.CORPUS, tmp_path_factory.mktemp("small") / "v.txt", wordpiece.SMALL_SIZE)


@pytest.fixture(scope="module")
def published(samples: Path) -> Path:
    return samples / "tokenizers/bert/bert-base-uncased-vocab.txt"


def test_hard_texts_are_cut_alike(small: Path, published: Path) -> None:
    found = {}
    for name, path in ((wordpiece.SMALL, small), (wordpiece.PUBLISHED, published)):
        ours, theirs = WordPieceVocabulary(path), _theirs(path)
        found[name] = [_tokens(theirs, text) for text in wordpiece.TEXTS]
        assert [ours.encode(text).tolist() for text in wordpiece.TEXTS] == found[name]
    if not wordpiece.PATH.exists() or wordpiece.answers() != found:
        rows = ",\n".join(f'"{name}": [\n{",".join(map(_line, rows))}\n]' for name, rows in found.items())
        wordpiece.PATH.write_text("{" + rows + "}\n", encoding="utf-8")


def _line(row: list[int]) -> str:
    return "\n" + json.dumps(row)


def test_captions_are_cut_alike(samples: Path, published: Path) -> None:
    """Real captions and drawn ones, tokens and, where no accent is taken off, the characters that they stand for."""
    ours, theirs = WordPieceVocabulary(published), _theirs(published)
    texts = captioning.adversarial(4_000)
    for file in sorted((samples / "localized_narratives").glob("*.jsonl")):
        texts += [json.loads(line)["caption"] for line in file.read_text().splitlines()]
    texts += [
        record["caption"] for record in json.loads((samples / "eval/captions_val2014_fakecap_results.json").read_text())
    ]
    for text in texts:
        answer = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = ours.encode_with_spans(text)
        assert ids.tolist() == answer["input_ids"], text
        if not any(unicodedata.category(char) == "Mn" for char in text):
            assert list(map(tuple, spans.tolist())) == answer["offset_mapping"], text
    print(f"{len(texts)} texts cut alike")


def test_every_character_is_read_alike(published: Path) -> None:
    """Those that are what they were in Unicode 3.2: the rest depends on the age of either side's tables."""
    ours, theirs = WordPieceVocabulary(published), _theirs(published)
    old = unicodedata.ucd_3_2_0.category
    characters = [char for char in map(chr, range(0x110000)) if old(char) == unicodedata.category(char)]
    characters = [char for char in characters if old(char) not in ("Cn", "Co", "Cs")]
    assert len(characters) > 90_000
    differ = [char for char in characters if ours.encode(f"a{char}b").tolist() != _tokens(theirs, f"a{char}b")]
    assert not differ
