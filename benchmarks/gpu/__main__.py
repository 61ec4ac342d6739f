"""Look at all that only a card can show, in under ten minutes: `make gpu`, or `python -m benchmarks.gpu`.

It uses the torch of the Python that runs it, installs and downloads nothing, and needs only the repository. A part that
fails, hangs or is killed ends alone. The table has the name of the card, and is written again after each part.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("torch", "numpy", "safetensors", "tokenizers", "ftfy", "PIL", "av", "einops", "tqdm")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
BUDGET = 580.0  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(
            f"make gpu: error: {sys.executable} lacks {', '.join(missing)}; name a Python that has the packages of "
            "requirements.txt: make gpu PYTHON=/path/to/python",
            file=sys.stderr,
        )
        return 2
    os.environ.update(OFFLINE)
    from benchmarks.common import RESULTS, add_device
    from benchmarks.gpu.parts import PARTS
    from benchmarks.gpu.runner import Setting, describe_card, run_all, run_here
    from wan.parser import Parser
    from wan.typed import one_of, path

    names = [part.name for part in PARTS]
    parser = Parser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    add_device(parser)
    parser.add_argument(
        "--parts", nargs="+", type=one_of(names), metavar="NAME", help=f"of {', '.join(names)}; default: all"
    )
    parser.add_argument(
        "--results", type=path, default=str(RESULTS), metavar="DIR", help="folder of the table; default: %(default)s"
    )
    parser.add_argument("--here", action="store_true", help="run one part in this process; default: in its own")
    args = parser.parse_args(arguments)
    chosen = [part for part in PARTS if part.name in (args.parts or names)]
    device, on_cpu = args.device, args.device.type == "cpu"
    if args.here:
        return run_here(chosen[0], Setting(device, free_bytes(device), toy=on_cpu))
    folder = Path(args.results)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^a-z0-9]+', '-', describe_card(device).removeprefix('a ').lower()).strip('-')}.md"

    def command(part) -> list[str]:
        return [sys.executable, "-m", "benchmarks.gpu", "--device", str(device), "--parts", part.name, "--here"]

    done = run_all(chosen, file, device, BUDGET, command)
    print(f"wrote {file}")
    return int(any(one.result == "failed" for one in done))


def free_bytes(device) -> int:
    """Bytes that a part may take, with some left for the driver and gaps."""
    import torch

    from wan.memory import total_memory

    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else total_memory(device) or 1 << 33
    return int(0.92 * free)


if __name__ == "__main__":
    sys.exit(main())
