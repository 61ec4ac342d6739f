"""Run inputs and print those that end wrongly: `python -m tests.faults 17 200-299`; `-v` prints every ending."""

import argparse
import gc
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from tests.faults.inputs import kind_of
from tests.faults.watch import run, set_up


def numbers(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("inputs", nargs="+", type=numbers, help="numbers, or ranges as 0-299")
    parser.add_argument("--kinds", default="", help="only of these kinds, as picture,video")
    parser.add_argument("-v", action="store_true", help="print each input, with what the command said about wrong ones")
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        base = set_up(Path(folder))
        gc.freeze()
        for number in (number for part in args.inputs for number in part):
            if args.kinds and kind_of(number).__name__ not in args.kinds.split(","):
                continue
            result = run(number, base, Path(folder))
            counts[f"{result.kind} {result.code}"] += 1
            wrong += bool(result.wrong)
            if result.wrong or args.v:
                print(result.line(), flush=True)
            if args.v and (result.wrong or len(args.inputs[0]) == 1):
                print(result.text[-3000:], flush=True)
    print("endings:", ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    print(f"{sum(counts.values())} inputs, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
