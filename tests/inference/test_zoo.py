"""``python -m monai_chunked bundle run`` saves what ``python -m monai.bundle run`` saves, of bundles as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import run

from monai_chunked.__main__ import main
from tests.inference.zoo import BUNDLES, assert_same_files, write_bundle

IN_CHUNKS: dict[str, str | None] = {
    "spleen_ct": None,
    "swin_unetr_btcv": None,
    "renalStructures_CECT": None,
    "wholeBody_ct": "Activationsd(pred), AsDiscreted(pred)",
    "prostate_mri": "AsDiscreted(pred)",
    "brats_mri": None,
    "pediatric_abdominal": None,
}
"""What runs in chunks; ``None``: nothing, because scores of the whole volume are inverted."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_saves_the_same_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, ours = write_bundle(tmp_path / "monai", name), write_bundle(tmp_path / "ours", name)
    run(config_file=str(reference))
    capsys.readouterr()
    assert main(["bundle", "run", "--config_file", str(ours)]) == 0
    assert_same_files(tmp_path / "ours", tmp_path / "monai")
    printed = capsys.readouterr().out
    if (expected := IN_CHUNKS[name]) is not None:
        assert f"in chunks: {expected}\n" in printed
        assert printed.count("MONAI's scores") == 1
