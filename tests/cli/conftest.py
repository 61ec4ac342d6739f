"""The folder and the checkpoint of the tests of the command line."""

import logging

import pytest

from tests.command_line import StubT2V
from wan import jobs, planning
from wan.nano.random import write_random_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("nano"))


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path, checkpoint, caplog):
    """An empty current folder, a random miniature as the embedded checkpoint, and no torchrun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: checkpoint)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    caplog.set_level(logging.INFO)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(StubT2V, "fail", None)
    monkeypatch.setattr(StubT2V, "steps_seen", 0)
    monkeypatch.setitem(jobs.PIPELINES, "t2v-A14B", StubT2V)
    return StubT2V
