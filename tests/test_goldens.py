"""Our parts against the answers that other implementations left in tests/goldens; `make parity` remakes them."""

import numpy as np
import pytest

from tests.goldens.cases import CASES, FOLDER, TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_we_answer_as_the_other_implementation_did(name: str) -> None:
    ours, golden = CASES[name].ours(), CASES[name].golden()
    assert [x.shape for x in ours] == [x.shape for x in golden]
    difference = max(
        float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max()) for a, b in zip(ours, golden, strict=True)
    )
    spread = max(float(x.std()) for x in golden if x.dtype != bool)
    assert spread > 0.1, "an answer that says nothing proves nothing"
    assert difference < TOLERANCE, f"{name} is {difference:.1e} off; make parity says whose fault it is"


def test_no_golden_is_left_over() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.npz")) == sorted(CASES)
