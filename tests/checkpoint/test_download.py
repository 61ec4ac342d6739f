"""Downloads of released checkpoints, from a real server on loopback that speaks the interfaces of both hubs."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.checkpoint.hub import REVISION, Hub, serving
from wan import cli
from wan.checkpoint import download as downloads
from wan.checkpoint.layout import check_folder, part_of, repository
from wan.choices import HUBS
from wan.configs import IMPLEMENTED_TASKS, NANO_CONFIGS, WAN_CONFIGS
from wan.nano.random import write_random_checkpoint
from wan.program import install_command

TASK = "t2v-A14B"
PLACE = "Wan2.2-T2V-A14B"
VAE, MODEL, TEXT = (
    "Wan2.1_VAE.pth",
    "low_noise_model/diffusion_pytorch_model.safetensors",
    "models_t5_umt5-xxl-enc-bf16.pth",
)
ROOT = Path(__file__).parents[2]
both = pytest.mark.parametrize("source", HUBS)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A repository as it is published, small."""
    folder = write_random_checkpoint(tmp_path_factory.mktemp("released"), TASK)
    for name in ("README.md", ".gitattributes", "assets/logo.png", "assets/config.json", "nested/extra.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture
def hub(released, tmp_path, monkeypatch):
    """Both libraries talk to this server; they wait for nothing."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(logging, "raiseExceptions", False)  # a library logs to the stream of an earlier test
    if find_spec("modelscope_hub"):
        monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 2)
    for name in ("MODELSCOPE_CACHE", "MODELSCOPE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "modelscope"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # usually 10 MB; what is less is fetched again
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(Hub(shutil.copytree(released, tmp_path / "released"), f"Wan-AI/{PLACE}")) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub


def run(*flags: str, source: str = HUBS[0], task: str = TASK) -> int:
    if source == "modelscope":
        pytest.importorskip("modelscope_hub")
    return downloads.exit_code(lambda: downloads.main([task, "--source", source, *flags]))


def error(capsys) -> str:
    """Return the one line that a failure prints; bars of progress end in a carriage return."""
    text = capsys.readouterr().err
    assert "Traceback" not in text, text
    lines = [line.rpartition("\r")[2] for line in text.splitlines()]
    return [line for line in lines if line.startswith("python -m") or line.startswith("generate.py")][-1]


def needed(hub: Hub) -> dict[str, bytes]:
    return {path: content for path, content in hub.listing() if part_of(path, WAN_CONFIGS[TASK])}


def got(folder: str = PLACE) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("task", IMPLEMENTED_TASKS)
def test_a_task_needs_every_file_of_its_checkpoint_and_no_other(task, tmp_path):
    folder = write_random_checkpoint(tmp_path, task)
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert [path for path in paths if part_of(path, WAN_CONFIGS[task]) is None] == []
    others = (
        "README.md",
        "assets/config.json",
        "high_noise_model.bin",
        "x/Wan2.1_VAE.pth",
        "google/other/a.json",
        "google/umt5-xxl/x.h5",
    )
    assert [path for path in others if part_of(path, WAN_CONFIGS[task])] == []


@both
def test_it_fetches_what_the_task_reads_after_saying_how_much_and_where(hub, source, caplog):
    caplog.set_level("INFO")
    hub.before = lambda path: caplog.records or pytest.fail("nothing was said")
    assert run(source=source) == 0
    assert got() == needed(hub) and len(got()) == 7
    said = caplog.messages
    size = f"{sum(map(len, needed(hub).values())) / 1e6:.1f} MB"
    assert said[0].startswith(f"{TASK}: {size} in 7 files from {hub.address}") and f"into {PLACE}; 5 others" in said[0]
    assert said[-1] == f"all sizes and hashes are right: --task {TASK} --ckpt_dir {PLACE}"
    check_folder(PLACE, NANO_CONFIGS[TASK])
    hub.asked.clear()
    assert run(source=source) == 0 and hub.asked == [], "complete: nothing is fetched again"


@both
def test_a_connection_that_is_cut_goes_on_where_it_ended(hub, source):
    hub.cut = {VAE: [1000, 5000], TEXT: [700]}
    assert run(source=source) == 0
    assert got() == needed(hub)
    assert [first for path, first in hub.asked if path == VAE] == [0, 1000, 6000]


@both
def test_the_next_run_goes_on_where_one_failed(hub, source, capsys):
    hub.cut = {VAE: [1000] + [0] * 50}
    assert run(source=source) == 1
    assert "failed: " in (said := error(capsys)) and said.endswith("what is there is kept: the same command goes on")
    assert not Path(PLACE, VAE).exists(), "half a file has no name in the folder"
    hub.cut, hub.asked = {}, []
    assert run(source=source) == 0 and got() == needed(hub)
    assert hub.asked[0] == (VAE, 1000)


def test_a_killed_run_is_continued(hub):
    """The process ends without a word, between two files; the first one is not fetched again."""
    children = []
    hub.before = lambda path: children[0].kill() if path == MODEL else None
    command = [sys.executable, "-m", "wan.checkpoint.download", TASK, "--ckpt_dir", os.path.abspath(PLACE)]
    children.append(subprocess.Popen(command, cwd=ROOT, env=environment(hub), stderr=subprocess.DEVNULL))
    assert children[0].wait() == -9 and Path(PLACE, VAE).exists() and not Path(PLACE, MODEL).exists()
    hub.before, hub.asked = lambda path: None, []
    assert run() == 0 and got() == needed(hub) and VAE not in dict(hub.asked)


@both
@pytest.mark.parametrize(
    "fault", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-9], lambda data: data + b"more"]
)
def test_a_file_with_other_content_than_promised_is_no_success(hub, source, fault, capsys):
    hub.altered = {TEXT: fault}
    assert run(source=source) == 1
    assert Path(TEXT).name in error(capsys)
    assert not Path(PLACE, TEXT).exists() and Path(PLACE, VAE).exists()
    hub.altered = {}
    assert run(source=source) == 0 and got() == needed(hub)


def test_a_file_that_git_itself_keeps_is_verified_too(hub, capsys):
    hub.altered = {"google/umt5-xxl/tokenizer.json": bytes.swapcase}
    assert run() == 1 and "tokenizer.json arrived as" in error(capsys)


@both
def test_a_file_of_other_content_is_replaced_only_when_asked(hub, source, capsys):
    assert run(source=source) == 0
    for content in (b"my own VAE", needed(hub)[VAE][:-1] + b"?"):
        Path(PLACE, VAE).write_bytes(content)
        assert run(source=source) == 2 and f"{PLACE}/{VAE} is not the released file" in error(capsys)
        assert Path(PLACE, VAE).read_bytes() == content
    hub.asked.clear()
    assert run("--overwrite", source=source) == 0 and got() == needed(hub)
    assert dict(hub.asked) == {VAE: 0}


# ---------------------------------------------------------------- full disks


def test_a_disk_without_room_is_refused_before_anything_is_fetched(hub, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100_000))
    assert run() == 2 and "make room, or choose another --ckpt_dir" in error(capsys) and hub.asked == []


def test_a_disk_that_fills_meanwhile_keeps_what_is_there(hub, capsys):
    small = Path("small")
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "wan", str(small)], capture_output=True).returncode:
        pytest.skip("only root can make a small disk here")
    try:
        hub.before = lambda path: fill(small) if path == MODEL else None
        assert run("--ckpt_dir", f"{small}/here") == 1
        assert "No space left on device" in (said := error(capsys)) and said.endswith("the same command goes on")
        assert (small / "here" / VAE).exists() and not (small / "here" / MODEL).exists()
        (small / "ballast").unlink()
        hub.before, hub.asked = lambda path: None, []
        assert run("--ckpt_dir", f"{small}/here") == 0 and got(f"{small}/here") == needed(hub)
        assert VAE not in dict(hub.asked)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def fill(disk: Path) -> None:
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


# ---------------------------------------------------------------- variables of the environment


def environment(hub: Hub, **more: str) -> dict[str, str]:
    return os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": os.path.abspath("home")} | more


def program(hub: Hub, *flags: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "wan.checkpoint.download", TASK, *flags]
    variables["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, env=environment(hub, **variables), capture_output=True, text=True)


def test_the_mirror_and_the_token_of_the_environment_count(hub):
    hub.token = "hf_secret"
    done = program(hub, HF_TOKEN="hf_secret")
    assert done.returncode == 0 and got() == needed(hub), done.stderr


def test_offline_a_complete_copy_in_the_home_of_the_library_is_enough(hub):
    keep(hub, Path("home/hub"))
    done = program(hub, HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and hub.seen == [], done.stderr
    assert done.stderr.count("\n") == 1 and f"--ckpt_dir {Path('home/hub').absolute()}" in done.stderr


def keep(hub: Hub, cache: Path) -> Path:
    """Put the repository into a cache as the library does."""
    kept = cache / "models--Wan-AI--Wan2.2-T2V-A14B"
    shutil.copytree(hub.folder, kept / "snapshots" / REVISION)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(REVISION)
    return kept / "snapshots" / REVISION


def test_a_copy_in_the_cache_is_taken_when_it_is_complete_and_right(hub, caplog):
    caplog.set_level("INFO")
    kept = keep(hub, Path("cache"))
    assert run() == 0 and hub.asked == [] and caplog.messages[-1].endswith(str(kept.absolute()))
    (kept / VAE).write_bytes(b"damaged")
    assert run() == 0 and got() == needed(hub)


def test_a_repository_that_wants_a_token_is_one_line(hub, monkeypatch, capsys):
    hub.token = "hf_secret"
    assert run() == 1 and "401" in error(capsys) and hub.asked == []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert run() == 0 and got() == needed(hub)


def test_without_a_network_a_complete_folder_is_enough(hub, monkeypatch, capsys, caplog):
    from huggingface_hub import constants

    caplog.set_level("INFO")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run() == 2 and f"there is no checkpoint folder {PLACE}" in error(capsys)
    shutil.copytree(hub.folder, PLACE)
    assert run() == 0 and caplog.messages[-1].endswith(f"no file is missing: --task {TASK} --ckpt_dir {PLACE}")
    Path(PLACE, VAE).unlink()
    assert run() == 2 and hub.seen == []


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("source, status", [(HUBS[0], 403), (HUBS[0], 404), (HUBS[0], 500), (HUBS[1], 404)])
def test_a_hub_that_refuses_is_one_line(hub, source, status, capsys):
    hub.status = status
    assert run(source=source) == 1 and hub.address in error(capsys) and hub.asked == []


@both
def test_a_hub_that_is_not_there_is_one_line(hub, source, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert run(source=source) == 1 and "http://127.0.0.1:9" in error(capsys)


def test_a_mirror_that_lacks_a_part_is_refused_before_anything_is_fetched(hub, capsys):
    (hub.folder / VAE).unlink()
    shutil.rmtree(hub.folder / "high_noise_model")
    assert run() == 2 and f"lists no {VAE}, high_noise_model" in error(capsys) and hub.asked == []


@pytest.mark.parametrize(
    "listed, reason",
    [
        (("google/umt5-xxl/../../../own.json", 3, "0" * 64), "a path that leads out of the folder"),
        (("google/umt5-xxl\\..\\own.json", 3, "0" * 64), None),  # no part of the checkpoint
        (("google/umt5-xxl/x.json", 3, ""), "names no hash of google/umt5-xxl/x.json"),
        (("google/umt5-xxl/x.json", 3, "../" + "0" * 61), "names no hash of google/umt5-xxl/x.json"),
    ],
)
def test_a_hostile_listing_writes_nothing_elsewhere(hub, monkeypatch, capsys, listed, reason):
    usual = downloads.HuggingFace.files
    monkeypatch.setattr(downloads.HuggingFace, "files", lambda self: [*usual(self), downloads.Remote(*listed)])
    assert run() == (2 if reason else 0)
    assert reason is None or (reason in error(capsys) and hub.asked == [])
    assert not list(Path().rglob("*own.json"))


def test_a_second_download_into_the_folder_is_refused(hub, capsys):
    codes = []
    hub.before = lambda path: codes or codes.append(run())
    assert run() == 0 and codes == [2] and got() == needed(hub)
    assert "another process downloads into" in error(capsys)


def test_a_missing_package_names_its_extra(hub, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    assert downloads.exit_code(lambda: downloads.main([TASK, "--source", "modelscope"])) == 2
    assert error(capsys).endswith(f"the package modelscope_hub is not installed; {install_command('modelscope')}")


@pytest.mark.parametrize("task", [task for task in WAN_CONFIGS if task not in IMPLEMENTED_TASKS])
def test_tasks_that_come_later_are_refused(hub, task, capsys):
    assert run(task=task) == 2 and "not available yet" in error(capsys) and hub.seen == []


# ---------------------------------------------------------------- the flag of generate.py


@both
def test_the_command_downloads_by_a_flag(hub, source):
    if source == "modelscope":
        pytest.importorskip("modelscope_hub")
    assert cli.main(["--download", "--task", TASK, "--ckpt_dir", "here", "--source", source]) == 0
    assert got("here") == needed(hub)


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--task", TASK, "--prompt", "a fox", "--base_seed", "1"], "leave out --base_seed, --prompt, and make videos"),
        ([], "--download needs --task, one of t2v-A14B, i2v-A14B"),
    ],
)
def test_flags_that_do_not_belong_to_a_download(hub, capsys, flags, reason):
    assert cli.main(["--download", *flags]) == 2 and reason in error(capsys) and hub.seen == []


def test_several_processes_do_not_download(hub, capsys, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["--download", "--task", TASK]) == 2 and "start it without torchrun" in error(capsys)


def test_the_released_names_are_those_of_the_hub():
    assert [repository(WAN_CONFIGS[task]) for task in ("t2v-A14B", "animate-14B")] == [PLACE, "Wan2.2-Animate-14B"]
