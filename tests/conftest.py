"""What every test shares."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed():
    """Random draws without a generator of their own are the same in every run and order."""
    torch.manual_seed(0)
