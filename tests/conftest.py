"""Settings of all tests."""

from wan.program import share_cores

share_cores()  # before torch is imported: the suite takes several times as long on busy cores otherwise

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def fixed_seed():
    """Seed torch, so that draws without a generator are the same in every run and order."""
    torch.manual_seed(0)
