"""Settings of all tests."""

import os

from wan.program import share_cores

# Before torch is imported: the suite takes several times as long on busy cores otherwise.
share_cores()
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # threads of theirs would share their cores, too
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402


def sendable(value: Any) -> Any:
    """Write the surrogates in the texts of a value as escapes: no text with one can be sent between processes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {sendable(name): sendable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(sendable, value))
    return value


LONG = "image_checkpoints jobs speech2video checkpoint offload faults docs extension staging".split()


SEVERAL = "tests/distributed/"  # tests that start several processes


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no worker is left with one of them at the end."""
    rank = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: -1 if item.nodeid.startswith(SEVERAL) else rank.get(item.path.name, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each worker whole files, and one of them all that start several processes: these share the cores badly."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return SEVERAL if nodeid.startswith(SEVERAL) else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(config, report):
    """Let a test that logs names of files in no encoding run in a process of its own."""
    return sendable((yield))


@pytest.fixture(autouse=True)
def fixed_seed():
    """Seed torch, so that draws without a generator are the same in every run and order."""
    torch.manual_seed(0)
