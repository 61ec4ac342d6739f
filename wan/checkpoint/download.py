"""Download the released checkpoint of a task: `python -m wan.checkpoint.download TASK`.

The list of the hub names size and hash of every file. A file gets its name in the folder when both are right. Until
then it lies in `.cache/wan` of the folder, where the next run continues it.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wan.checkpoint.layout import check_folder, part_of, parts, repository
from wan.choices import HUBS
from wan.configs import WAN_CONFIGS, TaskConfig, get_config
from wan.files import check_room, disk_named, in_units, shown
from wan.interrupts import INTERRUPTED
from wan.parallel import launched_size
from wan.parser import Parser, exit_code
from wan.program import OneLine, print_error
from wan.typed import one_of, path

log = logging.getLogger(__name__)

ORGANISATION = "Wan-AI"
UNFINISHED = Path(".cache", "wan")  # within the folder; `layout.is_empty` overlooks it
CHUNK_BYTES = 1 << 22
AGAIN = "what is there is kept: the same command goes on"
# Packages whose errors are about the connection; not all of them are errors of the system.
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "huggingface_hub", "modelscope_hub")


@dataclass(frozen=True)
class Remote:
    """File of a repository. `digest` is its sha256 (64 digits), or the sha1 by which git names its content (40)."""

    path: str
    size: int
    digest: str

    def is_at(self, place: Path) -> bool:
        """Tell whether a path is this file, complete and right. All of it is read."""
        return place.is_file() and place.stat().st_size == self.size and self.digest_of(place) == self.digest

    def digest_of(self, place: Path) -> str:
        """Compute the digest of a file, of the same kind as that of the hub."""
        is_git = len(self.digest) == 40
        value = hashlib.sha1(b"blob %d\0" % place.stat().st_size) if is_git else hashlib.sha256()
        with disk_named(place), open(place, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                value.update(chunk)
        return value.hexdigest()


class HuggingFace:
    """Repository of huggingface.co, or of the mirror that HF_ENDPOINT names. The library reads HF_TOKEN and HF_HOME."""

    def __init__(self, name: str):
        from huggingface_hub import constants

        self.name, self.place = name, f"{constants.ENDPOINT}/{name}"
        self.is_offline = constants.is_offline_mode()
        self._revision = ""

    def files(self) -> list[Remote]:
        """List the files of the newest revision; all of them are then fetched from that one."""
        from huggingface_hub import HfApi

        found = HfApi().model_info(self.name, files_metadata=True)
        self._revision = found.sha or "main"
        return [
            Remote(file.rfilename, file.size or 0, (file.lfs.sha256 if file.lfs else file.blob_id) or "")
            for file in found.siblings or ()
        ]

    def fetch(self, file: Remote, folder: Path) -> Path:
        """Fetch a file into a folder of unfinished ones, going on where it ends; return its path there."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        part = folder / file.digest
        with open(part, "ab") as out:
            if out.tell() > file.size:
                out.truncate(out.seek(0))
            http_get(
                hf_hub_url(self.name, file.path, revision=self._revision),
                out,
                resume_size=out.tell(),
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},  # compressed, it could not be continued
                expected_size=file.size,
                displayed_filename=file.path,
            )
        return part

    def kept(self) -> Path | None:
        """Find the folder of the repository in the cache of the library, complete or not."""
        from huggingface_hub import snapshot_download

        with suppress(FileNotFoundError):
            return Path(snapshot_download(self.name, local_files_only=True))
        return None


class ModelScope:
    """Repository of modelscope.cn, or of the address in MODELSCOPE_ENDPOINT; needs the package modelscope."""

    is_offline = False

    def __init__(self, name: str):
        from modelscope_hub import HubApi, HubConfig

        config = HubConfig()
        self.name, self.place = name, f"{config.endpoint}/models/{name}"
        self._api = HubApi(config)

    def files(self) -> list[Remote]:
        found = self._api.list_repo_files(self.name, "model")
        return [Remote(file.path, file.size, file.sha256 or "") for file in found if not file.is_dir]

    def fetch(self, file: Remote, folder: Path) -> Path:
        """Fetch a file into a folder of unfinished ones; the library goes on where it ends, and compares the hash."""
        expected = {"expected_sha256": file.digest, "file_size": file.size}
        return Path(self._api.download_file(self.name, "model", file.path, local_dir=folder, **expected))

    def kept(self) -> Path | None:
        return None


SOURCES = dict(zip(HUBS, (HuggingFace, ModelScope), strict=True))


def download(task: str, folder: str | None = None, source: str = HUBS[0], overwrite: bool = False) -> Path:
    """Bring the released checkpoint of a task into a folder, by default one of its name; return the folder.

    Without `folder`, a complete copy in the cache of the library is taken as it is. Raises ValueError for what the user
    can cure before the transfer, OSError when it fails.
    """
    config = get_config(task)
    hub = SOURCES[source](f"{ORGANISATION}/{repository(config)}")
    place, kept = Path(folder or repository(config)), None if folder else hub.kept()
    if hub.is_offline:
        return _without_network(config, [place, *([kept] if kept else [])])
    files = _needed(hub, config, place)
    absent = [file for file in files if not file.is_at(place / file.path)]
    if absent and kept and all(file.is_at(kept / file.path) for file in files):
        place, absent = kept, []
    if absent:
        _check_room(absent, files, place, overwrite)
        _fetch_all(hub, absent, place)
    check_folder(place, config)
    log.info("all sizes and hashes are right: --task %s --ckpt_dir %s", task, shown(place))
    return place


def from_flags(args: argparse.Namespace) -> int:
    """Run `generate.py --download`; return its exit code."""
    others = sorted(set(args.typed) - {"--download", "--task", "--ckpt_dir", "--source", "--overwrite"})
    if others:
        raise ValueError(
            f"--download only fetches the checkpoint; leave out {', '.join(others)}, and make videos after it"
        )
    if launched_size() > 1:
        raise ValueError("--download is work for one process; start it without torchrun")
    if args.task is None:
        raise ValueError(f"--download needs --task, one of {', '.join(WAN_CONFIGS)}")
    return run(args.task, args.ckpt_dir, args.source or HUBS[0], args.overwrite)


def run(task: str, folder: str | None, source: str, overwrite: bool) -> int:
    """Download, and return the exit code: a transfer that fails or is interrupted says how to go on."""
    for library in ("httpx", "httpx2"):  # they log each request
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        download(task, folder, source, overwrite)
    except OSError as error:
        print_error(f"failed: {error}; {AGAIN}")
        return 1
    except KeyboardInterrupt:
        print_error(f"interrupted; {AGAIN}")
        return INTERRUPTED
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m wan.checkpoint.download",
        description="Download the released checkpoint of a task. It says first how many GB and where, goes on after an "
        "interruption, compares sizes and hashes, and leaves out what the task does not read.",
        epilog="HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE have their usual meaning; of ModelScope "
        "MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN. Exit codes: 0 complete, 1 failed, 2 wrong arguments, 130 "
        "interrupted.",
    )
    parser.add_argument("task", type=one_of(WAN_CONFIGS), metavar="TASK", help=", ".join(WAN_CONFIGS))
    parser.add_argument("--ckpt_dir", type=path, metavar="DIR", help="default: a folder of the repository's name, here")
    parser.add_argument(
        "--source", type=one_of(HUBS), metavar="{" + ",".join(HUBS) + "}", default=HUBS[0], help=f"default: {HUBS[0]}"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of other content; default: refuse")
    args = parser.parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return run(args.task, args.ckpt_dir, args.source, args.overwrite)


# ---- before the transfer ----


def _without_network(config: TaskConfig, places: list[Path]) -> Path:
    """Return the first complete folder. Raises ValueError when none is: HF_HUB_OFFLINE forbids connections."""
    reason = ""
    for place in places:
        try:
            check_folder(place, config)
        except (ValueError, OSError) as error:
            reason = reason or str(error).partition("\n")[0].partition(". Download")[0]
            continue
        log.info("HF_HUB_OFFLINE is set; no file is missing: --task %s --ckpt_dir %s", config.name, shown(place))
        return place
    raise ValueError(f"HF_HUB_OFFLINE is set, so nothing is downloaded, and {reason.rstrip(':')}")


def _needed(hub: HuggingFace | ModelScope, config: TaskConfig, place: Path) -> list[Remote]:
    """List the files that a task reads, and say how many GB they have and where they go."""
    with _connected(hub.place):
        listed = hub.files()
    files = [file for file in listed if part_of(file.path, config)]
    if lacking := sorted(set(parts(config)) - {part_of(file.path, config) for file in files}):
        raise ValueError(f"{hub.place} lists no {', '.join(lacking)}: it is not the checkpoint of {config.name}")
    for file in files:
        if ".." in PurePosixPath(file.path).parts or "\\" in file.path:
            raise ValueError(f"{hub.place} lists {shown(file.path)}, a path that leads out of the folder")
        if len(file.digest) not in (40, 64) or not file.digest.isalnum():
            raise ValueError(f"{hub.place} names no hash of {shown(file.path)}, so it cannot be verified")
    left_out = len(listed) - len(files)
    log.info(
        "%s: %s in %d files from %s into %s%s",
        *(config.name, _size(files), len(files), hub.place, shown(place)),
        f"; {left_out} others are left out, which the task does not read" if left_out else "",
    )
    if any((place / file.path).exists() for file in files):
        log.info("comparing what is there ...")
    return files


def _check_room(absent: list[Remote], files: list[Remote], place: Path, overwrite: bool) -> None:
    """Refuse to replace files of other content, and to begin what the disk has no room for."""
    for file in absent:
        if not overwrite and os.path.lexists(found := place / file.path):
            raise ValueError(
                f"{shown(found)} is not the released file; move it away, or give --overwrite to replace it"
            )
    rest = sum(file.size for file in absent) - _bytes_in(place / UNFINISHED)
    free = check_room(place, rest, "are to be downloaded", "make room, or choose another --ckpt_dir")
    log.info("%s of %s to download, %s free", _size(absent), _size(files), in_units(free))


# ---- the transfer ----


def _fetch_all(hub: HuggingFace | ModelScope, files: list[Remote], place: Path) -> None:
    unfinished = place / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        for file in files:
            log.info("%s (%s)", shown(file.path), _size([file]))
            with _connected(hub.place), disk_named(place / file.path):
                part = hub.fetch(file, unfinished)
            if not file.is_at(part):
                found = f"{part.stat().st_size} bytes with hash {file.digest_of(part)}"
                part.unlink()
                raise OSError(
                    f"{shown(file.path)} arrived as {found}, and {hub.place} promises {file.size} with {file.digest}: "
                    "the mirror or the connection is faulty"
                )
            (place / file.path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, place / file.path)
    shutil.rmtree(unfinished)
    with suppress(OSError):  # the library keeps files there, too
        unfinished.parent.rmdir()


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep a second download out of a folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(place / UNFINISHED / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process downloads into {shown(place)}; wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Turn an error of the libraries about a connection into an OSError that names the address."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in NETWORK or isinstance(error, KeyboardInterrupt):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(f"{address}: {shown(reason, 400)}") from None


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(files: list[Remote]) -> str:
    return in_units(sum(file.size for file in files))


if __name__ == "__main__":
    sys.exit(exit_code(main))
