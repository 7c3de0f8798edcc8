import pytest

from services.inference.engine_instance import EngineInstance
from services.inference.engines.dialect import Load


def lives(*loads):
    """Says at each load whether it is a new life; None stands for an engine that is away."""
    instance = EngineInstance()
    found = []
    for load in loads:
        if load is None:
            instance.note_away()
        else:
            found.append(instance.is_new(load))
    return found


@pytest.mark.parametrize(
    ("loads", "new"),
    [
        # A number of its own decides.
        ([Load(instance=5), Load(instance=5.2), Load(instance=90)], [False, False, True]),
        ([Load(instance=5, work=9), Load(instance=5, work=1)], [False, False]),
        ([Load(instance=5), None, Load(instance=5)], [False, False]),
        # Else a count that falls.
        ([Load(work=5), Load(work=7), Load(work=6)], [False, False, True]),
        ([Load(work=5), None, Load(work=7)], [False, False]),
        # Else it counts as new when it was away.
        ([Load(), Load(), None, Load(), Load()], [False, False, True, False]),
        # A gauge that is missing once says nothing.
        ([Load(instance=5), Load(), Load(instance=5)], [False, False, False]),
    ],
)
def test_lives(loads, new):
    assert lives(*loads) == new
