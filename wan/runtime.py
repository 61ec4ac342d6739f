"""Runtime: how a request is run. The public flags end here and become one value."""

from dataclasses import dataclass
from enum import Enum

import torch

CPU = torch.device("cpu")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DTYPE_NAMES = {"bfloat16": "bf16", "float32": "fp32"}  # other spellings that are accepted
_DEVICE_TYPES = ("cuda", "mps", "cpu")


class Offload(Enum):
    NONE = "none"  # every model stays on the device
    MODEL = "model"  # one model at a time


@dataclass(frozen=True)
class Runtime:
    """`dtype` is what the transformers compute in; parameters that need float32 keep it unless `convert_model_dtype`.

    `t5_device` is where the text encoder works; `attention` is a backend name of `wan.modules.attention`.
    """

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    convert_model_dtype: bool = False
    offload: Offload = Offload.NONE
    t5_device: torch.device = CPU
    attention: str = "auto"
    compile: bool = False

    @property
    def dtype_name(self) -> str:
        """The name of `dtype` on the command line."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES.values():
            raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")
        if self.convert_model_dtype and self.dtype == torch.float32:
            raise ValueError("--convert_model_dtype stores weights in bfloat16 and contradicts --dtype fp32; drop one")

    @classmethod
    def default(cls, *, device_id: int = 0, t5_cpu: bool = False, convert_model_dtype: bool = False) -> "Runtime":
        """What the library constructors use: the best device, and on CUDA the one numbered `device_id`."""
        device = f"cuda:{device_id}" if torch.cuda.is_available() else None
        return cls.from_flags(device=device, t5_cpu=t5_cpu, convert_model_dtype=convert_model_dtype)

    @classmethod
    def from_flags(
        cls,
        *,
        device: str | torch.device | None = None,
        dtype: str = "bf16",
        convert_model_dtype: bool = False,
        offload_model: bool | None = None,
        t5_cpu: bool = False,
        attention: str = "auto",
        compile: bool = False,
        t5_fsdp: bool = False,
        dit_fsdp: bool = False,
        ulysses_size: int = 1,
    ) -> "Runtime":
        """Fold the public flags. `device` None takes the best there is; `offload_model` None means yes on a GPU.

        Raises ValueError for a device this machine lacks and for the multi-GPU flags, which have no code yet.
        """
        for flag, given in (("--t5_fsdp", t5_fsdp), ("--dit_fsdp", dit_fsdp)):
            if given:
                raise ValueError(f"{flag} needs several GPUs, which is not available yet; leave it out to run on one")
        if ulysses_size != 1:
            raise ValueError(
                f"--ulysses_size {ulysses_size} needs several GPUs, which is not available yet; use --ulysses_size 1"
            )
        dtype = DTYPE_NAMES.get(dtype, dtype)
        if dtype not in DTYPES:
            raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        place = resolve_device(device)
        on_cpu = place.type == "cpu"
        # On the CPU there is nowhere to move a model to, so asking for offload changes nothing.
        offload = Offload.MODEL if (offload_model is not False and not on_cpu) else Offload.NONE
        return cls(
            device=place,
            dtype=DTYPES[dtype],
            convert_model_dtype=convert_model_dtype,
            offload=offload,
            t5_device=CPU if t5_cpu else place,
            attention=attention,
            compile=compile,
        )


def available_devices() -> list[str]:
    """Device names this machine can use, best first; the CPU is always last."""
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def resolve_device(name: str | torch.device | None) -> torch.device:
    """The device meant by `name` ("cuda", "cuda:1", "mps", "cpu"), or the best one for None.

    Raises ValueError, naming what this machine has, when the device is unknown or absent.
    """
    available = available_devices()
    if name is None:
        return torch.device(available[0])
    have = f"this machine has {', '.join(available)}; try --device {available[0]}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is not a device ({', '.join(_DEVICE_TYPES)}); {have}") from None
    if device.type not in _DEVICE_TYPES:
        raise ValueError(f"--device {name} is not supported ({', '.join(_DEVICE_TYPES)}); {have}")
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    if device.type == "cpu":
        return CPU
    wanted = "mps" if device.type == "mps" else str(device)
    if wanted not in available:
        raise ValueError(f"--device {name} cannot be used here: {have}")
    return device
