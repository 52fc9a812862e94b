"""What every mode offers the daemon, in the same form."""

from __future__ import annotations

import inspect

import pytest

from pykubeproxy.backend import Backend, Surroundings
from pykubeproxy.config import MODES, MODES_NOT_YET
from pykubeproxy.daemon import BACKENDS


def test_every_mode_that_may_be_configured_has_a_backend():
    assert set(MODES) - MODES_NOT_YET == BACKENDS.keys()


@pytest.mark.parametrize("mode", BACKENDS)
def test_a_backend_is_built_from_the_surroundings_alone(mode):
    (around,) = inspect.signature(BACKENDS[mode], eval_str=True).parameters.values()
    assert Surroundings is around.annotation
    assert Backend is inspect.signature(BACKENDS[mode], eval_str=True).return_annotation
