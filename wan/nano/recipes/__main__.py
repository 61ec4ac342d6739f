"""Trains the embedded miniature family: `python -m wan.nano.recipes t2v`; docs/training.md says what it took.

The stages of a family run in order, each from the files of the ones before it in `--dir`; every stage continues where a
killed run stopped. All draws come from fixed seeds and budgets are counted in steps, so a run differs from another only
by the rounding of the machine.
"""

import argparse
import time
from pathlib import Path

if __name__ == "__main__":  # before torch is imported
    from wan.program import share_cores

    share_cores()

from wan.nano.recipes import i2v, t2v, ti2v

RECIPES = {"t2v": t2v.RECIPE, "i2v": i2v.RECIPE, "ti2v": ti2v.RECIPE}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m wan.nano.recipes", description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=list(RECIPES))
    parser.add_argument("--stage", default="all", help="one stage of the family, or all of them")
    parser.add_argument("--dir", "--work", dest="folder", type=Path, default=Path("nano-training"))
    parser.add_argument("--budget", choices=["full", "smoke"], default="full")
    parser.add_argument("--steps", type=int, help="another number of steps for the training stages chosen")
    args = parser.parse_args(arguments)
    recipe = RECIPES[args.family]
    if args.stage not in ("all", *recipe.stages):
        parser.error(f"--stage {args.stage!r} is not one of all, {', '.join(recipe.stages)}")
    budget = recipe.budgets[args.budget]
    if args.steps:
        budget = recipe.with_steps(budget, args.steps)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in recipe.stages if args.stage == "all" else [args.stage]:
        started = time.monotonic()
        print(f"--- {name}", flush=True)
        recipe.stages[name](args.folder, budget)
        print(f"--- {name} done in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
