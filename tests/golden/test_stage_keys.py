"""Stage keys are as recorded: a store that an earlier version filled is still read."""

from . import stage_keys


def test_keys_are_as_recorded():
    found = stage_keys.all_keys()
    assert len(found) >= 12
    assert not stage_keys.differences(found, stage_keys.recorded()), "see `stage_keys.py`"


def test_cases_tell_each_other_apart():
    keys = stage_keys.recorded()
    assert len({tuple(stages.values()) for stages in keys.values()}) == len(keys)
