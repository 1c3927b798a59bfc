import pytest

from helpers import writers
from helpers.writers import SMALL


@pytest.fixture(scope="module")
def model():
    """A small random model in f32."""
    return writers.core_model(SMALL, writers.random_weights(SMALL), "f32")
