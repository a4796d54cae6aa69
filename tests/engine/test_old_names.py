"""What the version before wrote under other names is read for one version."""

import json

import numpy as np
import pytest

from recapture.client.schema import Model
from recapture.engine.config import RunConfig, override
from recapture.engine.models.multiview import find_multiview_model
from recapture.engine.stage_results import load_array, load_coverage
from recapture.engine.store import Store
from tests.small_models import write_small_multiview


def test_options():
    old = RunConfig().to_json()
    old["anchor"]["band"] = 0.1
    old["tune"]["normalisation"] = "frame"
    del old["anchor"]["depth_tolerance"], old["tune"]["normalization"]
    new = override(RunConfig(), {"anchor": {"depth_tolerance": 0.1}, "tune": {"normalization": "frame"}})
    assert RunConfig.from_json(old) == new
    assert override(RunConfig(), {"anchor": {"band": 0.1}, "tune": {"normalisation": "frame"}}) == new


def test_the_license_of_a_multiview_model(small_svd, tmp_path):
    folder = write_small_multiview(tmp_path / "model", small_svd, license="MIT")
    path = folder / "multiview.json"
    path.write_text(path.read_text().replace('"license"', '"licence"'))
    assert "licence" in json.loads(path.read_text())
    assert find_multiview_model(str(folder)).license == "MIT"


def test_the_license_of_a_service_s_model():
    answer = {"id": "tiny", "licence": "Apache-2.0", "about": "in the package", "frames": 14}
    assert Model.model_validate(answer).license == "Apache-2.0"


def test_arrays_of_stored_results(tmp_path):
    store = Store(tmp_path)
    mask = np.arange(6, dtype=np.uint8).reshape(2, 1, 3)
    with store.begin("anchor", "a" * 64) as out:
        out.save_array("mask", mask > 2)
        out.save_array("evidence", mask)
        out.json("coverage", {"holes": [0.5, 0.0], "other_frames": [0.0, 0.0], "imagined": [0.1, 0.2], "route": "auto"})
        out.publish()
    entry = store.get("anchor", "a" * 64)
    assert entry is not None
    assert np.array_equal(load_array(entry, "validity_mask"), mask > 2)
    assert np.array_equal(load_array(entry, "provenance"), mask)
    assert load_coverage({"anchor": entry})["synthesized"] == [0.1, 0.2]
    with pytest.raises(KeyError, match="no 'alpha"):
        load_array(entry, "alpha")
