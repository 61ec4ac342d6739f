"""Configs of the tasks and their sizes: values only, by the names that users type."""

from wan.configs.nano import NANO_CONFIGS, is_embedded, nano_checkpoint
from wan.configs.shared_config import KNOWN_SIZES, Presets, TaskConfig, wan_shared_cfg
from wan.configs.wan_animate_14B import animate_14B
from wan.configs.wan_i2v_A14B import i2v_A14B
from wan.configs.wan_s2v_14B import s2v_14B
from wan.configs.wan_t2v_A14B import t2v_A14B
from wan.configs.wan_ti2v_5B import ti2v_5B

WAN_CONFIGS = Presets(t2v_A14B, i2v_A14B, ti2v_5B, animate_14B, s2v_14B)

# Tasks with a pipeline in this version; the others have configs, and are refused by name.
IMPLEMENTED_TASKS = ["t2v-A14B", "i2v-A14B", "ti2v-5B", "s2v-14B", "animate-14B"]

# "W*H" -> (width, height) and -> pixels.
SIZE_CONFIGS: dict[str, tuple[int, int]] = {
    size: (int(width), int(height)) for size in KNOWN_SIZES for width, height in [size.split("*")]
}
MAX_AREA_CONFIGS: dict[str, int] = {size: width * height for size, (width, height) in SIZE_CONFIGS.items()}
SUPPORTED_SIZES: dict[str, tuple[str, ...]] = {task: config.sizes for task, config in WAN_CONFIGS.items()}

__all__ = [
    "IMPLEMENTED_TASKS",
    "MAX_AREA_CONFIGS",
    "NANO_CONFIGS",
    "SIZE_CONFIGS",
    "SUPPORTED_SIZES",
    "WAN_CONFIGS",
    "TaskConfig",
    "check_available",
    "get_config",
    "is_embedded",
    "nano_checkpoint",
    "register",
    "wan_shared_cfg",
]


def get_config(task: str, family: str = "wan2.2") -> TaskConfig:
    """Return a copy of the config of a task, of the released or the "nano" family.

    Raises ValueError for unknown tasks and for those that come later.
    """
    if task not in WAN_CONFIGS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(WAN_CONFIGS)}")
    check_available(task)
    table = NANO_CONFIGS if family == "nano" else WAN_CONFIGS
    if task not in table:
        raise ValueError(f"there is no embedded nano checkpoint for {task}; nano has {', '.join(table)}")
    return table[task]


def check_available(task: str) -> None:
    """Raise ValueError for a known task that has no pipeline yet."""
    if task in WAN_CONFIGS and task not in IMPLEMENTED_TASKS:
        raise ValueError(f"task {task} is not available yet, it comes later; now: {', '.join(IMPLEMENTED_TASKS)}")


def register(config: TaskConfig) -> None:
    """Add a task under the name of its config, to the table of its family. Call it once for each family."""
    (NANO_CONFIGS if config.family == "nano" else WAN_CONFIGS).add(config)
    if config.name not in IMPLEMENTED_TASKS:
        IMPLEMENTED_TASKS.append(config.name)
