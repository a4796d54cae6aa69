"""A path is judged by all its frames, not by its best."""

import pytest

from recapture.engine.anchor.writing import check_coverage
from recapture.engine.errors import CameraError


@pytest.mark.parametrize(
    ("holes", "said"),
    [
        ([0.1] * 8, None),
        ([0.0] * 4 + [0.89] * 4, None),
        ([0.0] * 4 + [0.97] * 4, "less than 10 % of the clip at frames 4-7 of 8"),
        ([0.0] * 7 + [1.0], "nothing of the clip at frame 7 of 8"),
        ([0.0] * 4 + [0.99] * 4, CameraError),
        ([1.0] * 8, CameraError),
        ([0.5, *[1.0] * 3, 0.5, *[1.0] * 3], CameraError),
    ],
)
def test_frames_that_see_nothing_count(holes, said):
    warnings: list[str] = []
    if said is CameraError:
        with pytest.raises(CameraError, match=r"sees nothing of the clip (at frames|in all frames)") as raised:
            check_coverage(holes, force=False, warn=warnings.append)
        assert raised.value.code == "camera_sees_nothing"
    check_coverage(holes, force=True, warn=warnings.append)
    assert bool(warnings) == (said is not None)
    assert said in (None, CameraError) or said in warnings[0]
