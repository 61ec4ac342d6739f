"""Compare the nano videos of this checkout with those of another state of it: `python -m tests.same_videos main~20`.

Each state makes every video in its own code: each task and kind of image, in bf16 and fp32, in one process and in two.
Their decoded frames are compared. Prints one line for each video, and exits with 1 when any differs. A restructuring
must change none; a change of rounding tells the largest difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIRST, LAST = (str(ROOT / "examples" / f"{name}_frame.png") for name in ("first", "last"))
PROMPT = "a big yellow triangle moves right on a navy background"
CASES = {
    "t2v": ["--task", "t2v-A14B"],
    "i2v first": ["--task", "i2v-A14B", "--image", FIRST],
    "i2v last": ["--task", "i2v-A14B", "--last_image", LAST],
    "i2v both": ["--task", "i2v-A14B", "--image", FIRST, "--last_image", LAST],
    "ti2v text": ["--task", "ti2v-5B"],
    "ti2v image": ["--task", "ti2v-5B", "--image", FIRST],
}
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
COMMON = ["--device", "cpu", "--base_seed", "7", "--sample_steps", "6", "--progress", "none", "--prompt", PROMPT]


def make(checkout: Path, folder: Path, processes: list[int]) -> dict[str, Path]:
    """Make every video of one state; return them by name."""
    videos = {}
    for count in processes:
        for dtype in ("bf16", "fp32"):
            for name, flags in CASES.items():
                title = f"{name}, {dtype}, {count} process{'es' * (count > 1)}"
                videos[title] = folder / f"{len(videos)}.mp4"
                launch = [*TWO, "generate.py"] if count > 1 else ["generate.py"]
                command = [sys.executable, *launch, *flags, *COMMON, "--dtype", dtype, "--save_file", videos[title]]
                environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
                subprocess.run(command, cwd=checkout, env=environment, check=True, stderr=subprocess.DEVNULL)
    return videos


def difference(one: Path, other: Path) -> str:
    """Return the largest difference of a value as a text, or "" when two videos have the same frames."""
    from wan.media import read_video

    a, b = (read_video(path)[0].int() for path in (one, other))
    if a.shape != b.shape:
        return f"frames {list(a.shape)} and {list(b.shape)}"
    return "" if a.equal(b) else f"values differ by up to {int((a - b).abs().max())} in {(a != b).float().mean():.2%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", help="a commit, or the folder of another checkout")
    parser.add_argument("--processes", type=json.loads, default=[1, 2], help="[1], [2] or [1, 2]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        other, folders = Path(args.other), [Path(temporary, name) for name in ("new", "old")]
        for folder in folders:
            folder.mkdir()
        if not other.is_dir():
            other = Path(temporary, "checkout")
            archive = subprocess.run(["git", "archive", args.other], cwd=ROOT, check=True, capture_output=True).stdout
            other.mkdir()
            subprocess.run(["tar", "-x", "-C", other], input=archive, check=True)
        new, old = (make(path, folder, args.processes) for path, folder in zip((ROOT, other), folders, strict=True))
        found = {title: difference(new[title], old[title]) for title in new}
    for title, text in found.items():
        print(f"{title:32s} {text or 'same'}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
