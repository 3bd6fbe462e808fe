"""Pickles of strangers: plain data is read, anything else is refused by name, and nothing is run."""

import copyreg
import pickle
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import DataError, pickles

PLAIN = [{"a": [1, 2.5, "é", None, True, -(10**30)], "b": (1, (2, 3), ())}, "x" * 300, {}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "plain.p"
    path.write_bytes(pickle.dumps(PLAIN, protocol))
    assert pickles.load(path, "refs file") == PLAIN


def test_texts_of_python_2_are_read(tmp_path: Path) -> None:
    (tmp_path / "old.p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nVcaf\\u00e9\np3\nsS'id'\np4\nI7\nsa.")
    assert pickles.load(tmp_path / "old.p", "refs file") == [{"sent": "café", "id": 7}]


class Evil:
    """Touches a file when it is unpickled by anyone less careful."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_by_name_and_never_run(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps([{"harmless": 1}, Evil(tmp_path / "touched")], protocol)
    pickle.loads(content)
    assert (tmp_path / "touched").exists()  # it is dangerous
    (tmp_path / "touched").unlink()
    (tmp_path / "evil.p").write_bytes(content)
    with pytest.raises(DataError, match=r"evil.p' asks for '[a-z_]+\.[\w.]+', expected plain data only") as caught:
        pickles.load(tmp_path / "evil.p", "refs file")
    assert not (tmp_path / "touched").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "asks for 'os.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for 'os.system'"),
        (b"(S'true'\nios\nsystem\n.", "asks for 'os.system'"),
        (b"\x80\x02\x82\x07.", "asks for 'EXT1'"),
        (b"Pstranger\n.", "asks for 'PERSID'"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "stores a thing under number 2147483647"),
        (b"]p99999999999\n.", "stores a thing under number 99999999999"),
        (pickle.dumps(PLAIN)[:-40], "is broken"),
        (b"", "is broken"),
        (b"{}", "is broken"),
        (b"not a pickle", "is broken"),
        (b"0.", "is broken"),
        (b"g5\n.", "is broken"),
        (b"X\xff\xff\xff\x7fabc.", "is broken"),
    ],
)
def test_odd_bytes_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "odd.p").write_bytes(content)
    with pytest.raises(DataError) as caught:
        pickles.load(tmp_path / "odd.p", "refs file")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_second_lock_holds_without_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_check", lambda *_: None)
    (tmp_path / "evil.p").write_bytes(pickle.dumps(Evil(tmp_path / "touched")))
    with pytest.raises(DataError, match="is broken .*it asks for"):
        pickles.load(tmp_path / "evil.p", "refs file")
    assert not (tmp_path / "touched").exists() and not copyreg._inverted_registry  # type: ignore[attr-defined]


def test_size_and_name_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_BYTES", 10)
    (tmp_path / "large.p").write_bytes(b"0" * 11)
    with pytest.raises(DataError, match="has 11 bytes, expected at most 10"):
        pickles.load(tmp_path / "large.p", "refs file")
    with pytest.raises(DataError, match="refs file is .*none.p', expected a file that exists"):
        pickles.load(tmp_path / "none.p", "refs file")
