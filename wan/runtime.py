"""Runtime: device, precision and memory policy of a run. The public flags become this value."""

from dataclasses import dataclass
from enum import Enum

import torch

from wan import choices
from wan.choices import MIN_VAE_TILE, QUANTIZED, VAE_FRAMES
from wan.parallel import ALONE, Parallel
from wan.values import quoted

CPU = torch.device("cpu")
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, full) for name, full in choices.DTYPES.items()}
VAE_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, full) for name, full in choices.VAE_DTYPES.items()}
# other spellings that are accepted
DTYPE_NAMES = {full: name for name, full in (choices.DTYPES | choices.VAE_DTYPES).items()}
_DEVICE_TYPES = ("cuda", "mps", "cpu")


class Offload(Enum):
    NONE = "none"  # every model stays on the device
    MODEL = "model"  # one model at a time
    BLOCK = "block"  # one step of one model at a time, such as a block of the transformer
    AUTO = "auto"  # the fastest of these that fits; the plan of a run decides


class Host(Enum):
    """Use of the host's memory by transformers and their blocks."""

    ALL = "all"  # each stays in it
    ONE = "one"  # one at a time, read again when it is used again
    MAPPED = "mapped"  # none: weights are read from their files, and converted, whenever they go to the device


@dataclass(frozen=True)
class Runtime:
    """Settings of a run; each of several processes has its own device.

    The transformers compute in `dtype`; parameters that need float32 keep it unless `convert_model_dtype`. The text
    encoder works on `t5_device`. `attention` is a backend name of `wan.modules.attention`. `vae_tile` is the edge in
    pixels of the tiles of the autoencoder, None for whole frames; `vae_frames` of `VAE_FRAMES` are computed together
    (None: as many as it likes), and its convolutions compute in `vae_dtype` (None: float32, or what a plan chooses
    where memory is short). `quantize` names the type of the transformers' weights, of `QUANTIZED`. `compile` None means
    compiled blocks where the plan of a run finds that they repay it, and none without a plan. Under `Offload.BLOCK` the
    first blocks that `stay` bytes hold stay on the device while their model works, and with `together` each of the
    others works on both branches of guidance before it leaves.
    """

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    convert_model_dtype: bool = False
    offload: Offload = Offload.NONE
    t5_device: torch.device = CPU
    attention: str = "auto"
    compile: bool | None = False
    parallel: Parallel = ALONE
    vae_tile: int | None = None
    vae_frames: int | None = None
    vae_dtype: torch.dtype | None = None
    quantize: str | None = None
    host: Host = Host.ALL
    stay: int = 0
    together: bool = False

    @property
    def spreads_blocks(self) -> bool:
        """Tell whether each process keeps a part of every block in host memory, which are gathered on the device."""
        return self.offload is Offload.BLOCK and self.parallel.ulysses_size > 1 and self.host is not Host.MAPPED

    @property
    def dtype_name(self) -> str:
        """Name of `dtype` on the command line."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    @property
    def conv_dtype(self) -> torch.dtype:
        """Type of the autoencoder's convolutions."""
        return self.vae_dtype or torch.float32

    @property
    def vae_flags(self) -> list[str]:
        """Flags of the command line that give these settings of the autoencoder."""
        flags = {"--vae_tile": self.vae_tile, "--vae_frames": self.vae_frames}
        flags["--vae_dtype"] = next((name for name, dtype in VAE_DTYPES.items() if dtype == self.vae_dtype), None)
        return [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES.values():
            raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")
        if self.convert_model_dtype and self.dtype == torch.float32:
            raise ValueError("--convert_model_dtype stores weights in bfloat16 and contradicts --dtype fp32; drop one")
        if self.vae_tile is not None and self.vae_tile < MIN_VAE_TILE:
            raise ValueError(f"--vae_tile must be at least {MIN_VAE_TILE} pixels, got {self.vae_tile}; try 256")
        if self.vae_frames not in (None, *VAE_FRAMES):
            near = max([number for number in VAE_FRAMES if number <= self.vae_frames], default=1)
            wanted = ", ".join(map(str, VAE_FRAMES))
            raise ValueError(f"--vae_frames must be one of {wanted}, got {self.vae_frames}; try {near}")
        if self.vae_dtype not in (None, *VAE_DTYPES.values()):
            raise ValueError(f"--vae_dtype must be one of {', '.join(VAE_DTYPES)}, got {self.vae_dtype}")
        if self.quantize not in (None, *QUANTIZED):
            raise ValueError(f"--quantize must be one of {', '.join(QUANTIZED)}, got {quoted(self.quantize)}")
        if self.quantize and self.parallel.dit_fsdp:
            raise ValueError(
                "--quantize stores whole matrices in 8 bits, and --dit_fsdp spreads them; leave --dit_fsdp out: "
                "--quantize works with --ulysses_size and with --offload block"
            )
        if self.quantize == "fp8" and self.device.type == "mps":
            raise ValueError("--quantize fp8 does not run on Apple's GPU, which has no such type; try --quantize int8")
        if self.device.type == "mps" and self.parallel.world_size > 1:
            raise ValueError(
                f"torchrun started {self.parallel.world_size} processes, and Apple's GPU is one device; start one "
                "process, without torchrun, or use --device cpu"
            )
        if self.parallel.dit_fsdp and self.offload is Offload.MODEL:
            raise ValueError(
                "--offload model (--offload_model True) moves whole models, --dit_fsdp keeps a part of each; leave "
                "--dit_fsdp out, --offload model and --ulysses_size work together"
            )
        if self.offload is Offload.BLOCK and (self.parallel.dit_fsdp or self.parallel.t5_fsdp):
            flags = [f"--{flag}" for flag in ("dit_fsdp", "t5_fsdp") if getattr(self.parallel, flag)]
            raise ValueError(
                f"--offload block moves whole blocks, {' and '.join(flags)} keeps a part of each; leave "
                f"{'it' if len(flags) == 1 else 'them'} out, --offload block and --ulysses_size work together"
            )
        if self.together and (self.offload is not Offload.BLOCK or self.parallel.cfg_size == 2):
            raise ValueError("branches of guidance go together through blocks that one process streams")
        if self.parallel.t5_fsdp and self.t5_device != self.device:
            raise ValueError("--t5_cpu and --t5_fsdp are two ways to make room for the text encoder; drop one")

    @classmethod
    def default(
        cls, *, device_id: int = 0, t5_cpu: bool = False, convert_model_dtype: bool = False, parallel: Parallel = ALONE
    ) -> "Runtime":
        """Make the runtime of the library constructors: the best device, and on CUDA the one numbered `device_id`."""
        device = f"cuda:{device_id}" if torch.cuda.is_available() else None
        return cls.from_flags(device=device, t5_cpu=t5_cpu, convert_model_dtype=convert_model_dtype, parallel=parallel)

    @classmethod
    def from_flags(
        cls,
        *,
        device: str | torch.device | None = None,
        dtype: str = "bf16",
        convert_model_dtype: bool = False,
        offload: str | None = None,
        offload_model: bool | None = None,
        t5_cpu: bool = False,
        attention: str = "auto",
        compile: bool | None = None,
        parallel: Parallel = ALONE,
        local_rank: int = 0,
        vae_tile: int | None = None,
        vae_frames: int | None = None,
        vae_dtype: str | None = None,
        quantize: str | None = None,
    ) -> "Runtime":
        """Fold the public flags. `device` None means the best one; of several GPUs, the one numbered `local_rank`.

        `offload_model`, upstream's flag, is True for the policy "model" and False for "none". Without both flags it is
        "auto", which a plan resolves. Raises ValueError for a device this machine lacks.
        """
        dtype = DTYPE_NAMES.get(dtype, dtype)
        if dtype not in DTYPES:
            raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {quoted(dtype)}")
        vae_dtype = DTYPE_NAMES.get(vae_dtype, vae_dtype)
        if vae_dtype not in (None, *VAE_DTYPES):
            raise ValueError(f"--vae_dtype must be one of {', '.join(VAE_DTYPES)}, got {quoted(vae_dtype)}")
        place = resolve_device(device if parallel.world_size == 1 else own_device(device, local_rank))
        policy = named_policy(offload, offload_model)
        if place.type == "cpu" and policy is not Offload.BLOCK:  # there is nowhere to move a model to
            policy = Offload.NONE
        return cls(
            device=place,
            dtype=DTYPES[dtype],
            convert_model_dtype=convert_model_dtype,
            offload=policy,
            t5_device=CPU if t5_cpu else place,
            attention=attention,
            compile=False if compile is None and place.type != "cuda" else compile,
            parallel=parallel,
            vae_tile=vae_tile,
            vae_frames=vae_frames,
            vae_dtype=VAE_DTYPES.get(vae_dtype),
            quantize=quantize,
        )


def named_policy(offload: str | None, offload_model: bool | None) -> Offload:
    """Fold the two flags of one policy. Raises ValueError when they contradict each other."""
    if offload is not None and offload not in choices.OFFLOAD:
        raise ValueError(f"--offload must be one of {', '.join(choices.OFFLOAD)}, got {quoted(offload)}")
    if offload_model is None:
        return Offload(offload or "auto")
    named = "model" if offload_model else "none"
    if offload not in (None, named):
        raise ValueError(
            f"--offload_model {offload_model} is --offload {named}, got --offload {offload} as well; drop one"
        )
    return Offload(named)


def own_device(name: str | torch.device | None, local_rank: int) -> str:
    """Name the device of one of several processes on a machine: the GPU of its number, or the CPU for all.

    Raises ValueError when there are more processes than GPUs, or when one GPU is named for all.
    """
    name = available_devices()[0] if name is None else str(name)
    kind, _, index = name.partition(":")
    if kind != "cuda" or not torch.cuda.is_available():
        return name
    if index and name != "cuda:0":
        raise ValueError(f"--device {name} would put all processes on one GPU; leave it out, each takes its own")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(f"torchrun started more processes here than there are GPUs, {count}; --nproc_per_node={count}")
    return f"cuda:{local_rank}"


def available_devices() -> list[str]:
    """List the names of devices that this machine has, best first; the CPU is always last."""
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def resolve_device(name: str | torch.device | None) -> torch.device:
    """Find the device of a name ("cuda", "cuda:1", "mps", "cpu"), or the best one for None.

    Raises ValueError, naming the devices of this machine, when it is unknown or absent.
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
