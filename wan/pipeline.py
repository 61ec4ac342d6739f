"""Base of every task's pipeline: the constructor, the components, the three phases of a run.

A run is encode -> denoise -> decode. A task adds conditions besides text. Loading, moving weights, timing, noise, the
velocity and the loop are here and in the modules below.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from wan import geometry
from wan.checking import VAES, check_checkpoint
from wan.checkpoint.layout import part
from wan.checkpoint.repacked import freshest
from wan.clips import Clip, ClipSampled, Event, FramesDecoded, SampledClip, StepDone
from wan.configs import TaskConfig
from wan.distributed.replica import Replica
from wan.distributed.util import get_rank, get_world_size, init_distributed_group
from wan.experts import load_expert, stored_types
from wan.finite import FiniteCheck, in_clip, require_finite
from wan.geometry import LatentShape
from wan.inputs import Sound
from wan.memory import PhaseStats, Weights, keep_no_gaps, measured
from wan.modules.attention import check_backend
from wan.modules.block_cache import BlockCache
from wan.modules.model import WanModel, time_features
from wan.modules.steps import Prepared
from wan.modules.t5 import T5EncoderModel
from wan.modules.vae import CausalVAE
from wan.modules.vae2_1 import Wan2_1_VAE
from wan.modules.vae2_2 import Wan2_2_VAE
from wan.parallel import ALONE, Parallel
from wan.request import Request
from wan.runtime import Offload, Runtime
from wan.sampling import Velocity, denoise, guided, in_one_call, make_solver, switch_at
from wan.utils.flow import FlowScheduler
from wan.values import called, named

log = logging.getLogger(__name__)

STEPS_AHEAD = 4  # of reading an expert: 57 GB take 20 s from a fast disk, and a step of A14B 5 s on an H200
ONE_LEVEL = 2 / 255  # of a file of 8 bits, in frames from -1 to 1
OnStep = Callable[[int, int, Tensor], None]  # steps done, steps in all, the latent so far
Contexts = tuple[Tensor, Tensor | None]  # text states of the prompt and of the negative one, [len, text_dim]

# Field of a request -> upstream's name of the argument of `generate`.
ARGUMENTS = {
    "prompt": "input_prompt",
    "negative_prompt": "n_prompt",
    "image": "img",
    "steps": "sampling_steps",
    "guidance": "guide_scale",
    "solver": "sample_solver",
}


def _of_config(name: str) -> property:
    """Make an attribute of the pipeline that reads and changes a field of the config."""
    return property(lambda self: getattr(self.config, name), lambda self, value: setattr(self.config, name, value))


def _expert(name: str) -> property:
    """Make an attribute for a transformer under upstream's name, loaded on first use; assigning replaces it."""

    def key(self: WanPipeline) -> str:
        named = self.config.experts
        names = ("model",) if len(named) == 1 else ("low_noise_model", "high_noise_model")
        if name not in names:
            raise AttributeError(f"{type(self).__name__} has {' and '.join(sorted(names))}, but no {name}")
        return named[names.index(name)]

    def put(self: WanPipeline, module: WanModel) -> None:
        self.weights.drop(key(self))
        self.weights.add(key(self), lambda: module)

    return property(lambda self: self.weights.get(key(self)), put)


class WanPipeline:
    """Models of a task, and the run that makes a video with them. Weights are read when they are first needed.

    config: an entry of `WAN_CONFIGS` (or a preset of the nano family); checkpoint_dir: a folder in the released layout.
    The remaining arguments are upstream's; `runtime` replaces them all with one value. With `use_sp`, `dit_fsdp` or
    `t5_fsdp` all processes of the run make a pipeline and one video together. `rank` has no effect, because processes
    know their ranks. `init_on_cpu` has none, because weights start as views of their files. Raises ValueError or
    FileNotFoundError, naming the fault, before any weight is read.
    """

    task: ClassVar[str]
    arguments: ClassVar[Mapping[str, str]] = ARGUMENTS

    def __init__(
        self,
        config: TaskConfig,
        checkpoint_dir: str | Path,
        device_id: int = 0,
        rank: int = 0,
        t5_fsdp: bool = False,
        dit_fsdp: bool = False,
        use_sp: bool = False,
        t5_cpu: bool = False,
        init_on_cpu: bool = True,
        convert_model_dtype: bool = False,
        *,
        runtime: Runtime | None = None,
    ):
        if not isinstance(config, TaskConfig):
            raise ValueError(f"config is an entry of WAN_CONFIGS, or a changed one, got {type(config).__name__}")
        config.check()
        if runtime is None:
            flags = {"t5_cpu": t5_cpu, "convert_model_dtype": convert_model_dtype}
            parallel = _all_together(use_sp, dit_fsdp, t5_fsdp)
            runtime = Runtime.default(device_id=device_id, parallel=parallel, **flags)
            runtime = replace(runtime, dtype=config.param_dtype)
        check_backend(runtime.attention, runtime.device, runtime.dtype)
        check_checkpoint(Path(checkpoint_dir), config)
        self._assemble(config, Path(checkpoint_dir), runtime)

    def _assemble(self, config: TaskConfig, checkpoint_dir: Path, runtime: Runtime) -> None:
        self.config, self.checkpoint_dir, self.runtime = config, checkpoint_dir, runtime
        self.phases: dict[str, PhaseStats] = {}
        self.replica = Replica(runtime.parallel, runtime.device)
        if runtime.offload is Offload.AUTO:  # only a request tells what fits
            one = runtime.parallel.world_size == 1
            self.runtime = runtime = replace(runtime, offload=Offload.MODEL if one else Offload.NONE)
        group = self.replica.group_of_weights() if runtime.spreads_blocks else None
        self.weights = Weights(runtime.device, runtime.offload, runtime.host, runtime.stay, group)
        types = stored_types(runtime)
        for expert in config.experts:
            self.weights.add(expert, partial(self._load_expert, expert), types, keeps=True)

    # ---- one run ----

    @torch.no_grad()
    def run(self, request: Request, kept: Iterable[SampledClip] = ()) -> Iterator[Event]:
        """Make a video, clip by clip, and yield an event for each part that is done. Closing the iterator cancels.

        `kept` are the first clips, sampled by an earlier run: they are only decoded. Of several processes that make the
        video together only the first one gets frames; the others get all other events, and must iterate as well.
        """
        request = replace(request, seed=self.replica.agree(request.seed))  # it may have been drawn
        request.check_parallel(self.runtime.parallel)
        self.phases.clear()
        self.calls.clear()
        kept, contexts, tail = iter(kept), None, None
        count, left = self.num_clips(request), self.num_frames(request)
        for index in range(count):
            sampled = next(kept, None)
            if sampled is None:
                with measured(self.phases, "encode", self.runtime.device):
                    contexts = contexts or self.encode_prompts(request)
                    if index and self.tail_frames(request):  # one process alone has decoded frames
                        [tail] = self.replica.computed_by_first(lambda end=tail: [end], 1, torch.float32)
                    clip = self.clip(request, index, tail)
                with measured(self.phases, "denoise", self.runtime.device):
                    with in_clip(index, count):
                        for step, latent in enumerate(self.denoise(request, contexts, clip), start=1):
                            yield StepDone(index, count, step, request.steps, latent)
                    for expert in self.config.experts:
                        self.weights.done(expert)
                lead = None if clip.lead is None else clip.lead.cpu()
                sampled = SampledClip(latent.cpu(), lead, clip.skip, clip.drop)
                yield ClipSampled(index, count, sampled)
            with measured(self.phases, "decode", self.runtime.device):
                for frames in self.finished(request, index, self._frames(sampled)):
                    frames = frames[:, :left]
                    left -= frames.shape[1]
                    if frames.shape[1]:
                        tail = self._tail(request, tail, frames)
                        yield FramesDecoded(index, count, request.framing.finish(frames))

    def video(
        self, request: Request, offload_model: bool | None = None, on_step: OnStep | None = None
    ) -> Tensor | None:
        """Make a whole video, [3, F, H, W] in [-1, 1], float32 on the CPU.

        Of several processes that make it together the first one gets it, the others get None. `offload_model` counts
        for this call only; None leaves the policy of the runtime. `on_step` is called after every solver step; an
        exception in it ends the run.
        """
        usual, frames = self.weights.offload, []
        if offload_model is not None:
            self.weights.set_offload(Offload.MODEL if offload_model else Offload.NONE)
        try:
            for event in self.run(request):
                if isinstance(event, FramesDecoded):
                    frames.append(event.frames.cpu())
                elif isinstance(event, StepDone) and on_step is not None:
                    on_step(event.step, event.steps, event.latent)
        finally:
            self.weights.set_offload(usual)
        return torch.cat(frames, dim=1) if self.replica.is_first else None

    def answer(self, call: Mapping[str, Any]) -> Tensor | None:
        """Make the video of a call of `generate`, given its arguments by name; None means the value of the config.

        Errors use the names of these arguments.
        """
        fields = (*Request.of_task(self.config.name).kinds(), "size", "max_area")
        given = {field: call[name] for field in fields if (name := self.arguments.get(field, field)) in call}
        with named(self.arguments):
            if given["prompt"] is None:
                raise ValueError(f"{called('prompt')} must be text, got None; with an image '' is enough")
            if given["negative_prompt"] == "":  # upstream's way to say the task's
                given["negative_prompt"] = None
            request = Request.create(self.config, **given)
        return self.video(request, offload_model=call["offload_model"], on_step=call["on_step"])

    # ---- its parts ----

    @cached_property
    def calls(self) -> Counter[str]:
        """Numbers of the last run: calls of transformers that were whole and reused, and steps that were unguided."""
        return Counter()

    @staticmethod
    def num_clips(request: Request) -> int:
        """Number of clips of the video."""
        return 1

    @staticmethod
    def num_frames(request: Request) -> int:
        """Number of frames of the whole video."""
        return request.frame_num

    def tail_frames(self, request: Request) -> int:
        """Number of last generated frames that the next clip is made from."""
        return 0

    @staticmethod
    def sound(request: Request) -> Sound | None:
        """Return the sound that the video gets, if any."""
        return None

    @classmethod
    def latent_shape(cls, config: TaskConfig, request: Request, index: int = 0) -> LatentShape:
        """Shape (channels, frames, rows, columns) of the latent that is sampled for a clip."""
        return geometry.latent_shape(request.framing.used, request.frame_num, config.vae_stride, config.z_dim)

    def clip(self, request: Request, index: int, tail: Tensor | None) -> Clip:
        """Describe clip `index`. `tail` are the last generated frames before it, [3, f, H, W]; None at first.

        Tasks with other inputs than text override this.
        """
        return Clip(self.latent_shape(self.config, request, index), request.seed)

    def denoise(self, request: Request, contexts: Contexts, clip: Clip) -> Iterator[Tensor]:
        """Denoise the latent [z, T, H, W] of one clip, and yield it after every step."""
        schedule = request.steps, request.shift, self.config.num_train_timesteps, request.sigmas
        solver = make_solver(request.solver, *schedule)
        velocity = self.velocity(request, contexts, clip, solver.timesteps.tolist())
        start, check = clip.keep(self.noise(request, clip)), FiniteCheck()
        ahead = self._last_high_steps(request, solver)
        for done, latent in enumerate(denoise(start, solver, velocity, clip.keep), start=1):
            check.read()  # the check of the step before, while the device computes this step
            check.note(latent, f"denoising step {done} of {request.steps}")
            if done == ahead:
                self.weights.prefetch(self.config.experts[0])
            yield latent
        check.read()

    def decode(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode a latent; yield frames [3, f, H, W] in [-1, 1], float32 on the device, in the first process.

        Those of tiles are on the CPU.
        """
        is_flat = _is_flat(latent.flatten(1))
        for chunk in self.replica.decode(self.vae, latent.to(self.runtime.device)):
            frames = chunk.float()
            require_finite(frames, "the decoder")
            if not is_flat and _is_flat(frames.flatten(1), within=ONE_LEVEL):
                is_flat = True  # warn once
                log.warning("decoded frames have one flat colour, and the latent has not: look at the video")
            yield frames

    def _frames(self, clip: SampledClip) -> Iterator[Tensor]:
        """Yield the frames of a clip, without those that are decoded only for their effect on later ones."""
        latent, drop = clip.latent[:, clip.skip :], clip.drop
        for frames in self.decode(latent if clip.lead is None else torch.cat([clip.lead, latent], dim=1)):
            if drop < frames.shape[1]:
                yield frames[:, drop:]
            drop = max(0, drop - frames.shape[1])

    def _tail(self, request: Request, tail: Tensor | None, frames: Tensor) -> Tensor | None:
        """Return the new end of a video that had the end `tail`, after more frames."""
        wanted = self.tail_frames(request)
        if not wanted:
            return None
        frames = frames[:, -wanted:].cpu()
        return frames if tail is None else torch.cat([tail, frames], dim=1)[:, -wanted:]

    def finished(self, request: Request, index: int, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        """Change the decoded frames of clip `index`, before they are shown and before the next clip sees its end."""
        return frames

    def velocity(self, request: Request, contexts: Contexts, clip: Clip, timesteps: Sequence[int]) -> Velocity:
        """Make the guided velocity; of two experts the high-noise one works from the boundary on, the other below it.

        An expert computes all that depends on no timestep, and the features of all `timesteps`, at its first step.
        """
        common = {"sizes": [clip.shape[1:]], "segments": clip.segments, "y": None if clip.y is None else [clip.y]}
        with_zero = torch.tensor([[t, 0] for t in timesteps]).flatten()
        caches = [BlockCache(request.reuse, self.runtime.dtype) for _ in contexts] if request.reuse else []
        guided_steps = round(request.guidance_until * len(timesteps))
        last_guided = timesteps[guided_steps - 1] if guided_steps else math.inf

        def expert(name: str, scale: float) -> Velocity:
            ends_early = scale != 1 and request.guidance_until < 1

            @cache
            def features() -> dict[int, Tensor]:
                rows = time_features(with_zero, self.weights.use(name).config.freq_dim, self.runtime.device)
                return dict(zip(timesteps, rows.unflatten(0, (-1, 2)), strict=True))

            @cache
            def prepared(branch: int) -> Prepared:
                others = (clip.positive, clip.negative)[branch]
                made = self.weights.use(name).prepare([contexts[branch]], **common, **others)
                return replace(made, through=caches[branch].run) if caches else made

            def forward(by: float, latent: Tensor, t: int, branch: int | tuple[int, ...]) -> Tensor | list[Tensor]:
                for other in range(2 if ends_early else 0):  # also one that other processes compute until then
                    prepared(other)
                model = self.replica.spread_tokens(self.weights.use(name), by)
                if isinstance(branch, tuple):
                    self.calls["whole"] += len(branch)
                    return [found[0] for found in model.branches([latent], features()[t], list(map(prepared, branch)))]
                reused = sum(kept.reused for kept in caches)
                velocity = model([latent], features()[t], prepared(branch))[0]
                self.calls["reused" if sum(kept.reused for kept in caches) > reused else "whole"] += 1
                return velocity

            def at_scale(by: float) -> Velocity:
                pair = in_one_call if self.runtime.together and not caches else self.replica.pair()
                return guided(partial(forward, by), 0, 1, by, pair)

            def alone(latent: Tensor, t: int) -> Tensor:
                self.calls["unguided"] += 1
                return at_scale(1)(latent, t)

            return switch_at(last_guided, at_scale(scale), alone) if ends_early else at_scale(scale)

        low, *high = map(expert, self.config.experts, request.guidance)
        if not high:
            return low
        return switch_at(request.boundary * self.config.num_train_timesteps, high[0], low)

    def noise(self, request: Request, clip: Clip) -> Tensor:
        """Draw the noise of a clip: standard normal, float32, by the clip's seed. Nothing else is drawn."""
        device = torch.device("cpu") if request.noise_device == "cpu" else self.runtime.device
        generator = torch.Generator(device).manual_seed(clip.seed)
        return torch.randn(clip.shape, generator=generator, device=device, dtype=torch.float32).to(self.runtime.device)

    def encode_prompts(self, request: Request) -> Contexts:
        """Encode the prompt to text states [len, text_dim], and if any guidance differs from 1 the negative prompt."""
        wanted = [request.prompt]
        if any(scale != 1 for scale in request.guidance):
            wanted.append(request.negative_prompt)

        def encode() -> list[Tensor]:
            encoder = self.text_encoder
            # one at a time, as upstream: a batch rounds differently in bfloat16
            states = [encoder([text], self.runtime.device)[0] for text in wanted]
            self.weights.done("text_encoder")
            return states

        if self.runtime.parallel.t5_fsdp:
            states = encode()
        else:
            states = self.replica.computed_by_first(encode, len(wanted), self.config.t5_dtype)
        for text_states in states:
            require_finite(text_states, "the text encoder")
        return states[0], states[1] if len(states) > 1 else None

    # ---- components ----

    @property
    def text_encoder(self) -> T5EncoderModel:
        """Text encoder, loaded on first use; on the device unless the runtime keeps it on the CPU."""
        if self._text_encoder is None:
            self._text_encoder = T5EncoderModel(
                text_len=self.config.text_len,
                dtype=self.config.t5_dtype,
                device=self.runtime.device if self.runtime.parallel.t5_fsdp else "cpu",
                checkpoint_path=self._text_weights(),
                tokenizer_path=part(self.checkpoint_dir, self.config.t5_tokenizer),
                shard_fn=self.replica.shard_t5,
            )
            self.weights.add("text_encoder", lambda: self._text_encoder.model)
        if self.runtime.t5_device == self.runtime.device:
            self.weights.use("text_encoder")
        return self._text_encoder

    @property
    def vae(self) -> Wan2_1_VAE | Wan2_2_VAE:
        """Video autoencoder, loaded on the device on first use. It leaves as the policy wants it."""
        if self._vae is None:
            self.weights.add("vae", self._load_vae)
        if self.weights.knows("vae"):
            self.weights.use("vae")
        return self._vae

    def _load_vae(self) -> CausalVAE:
        if self.runtime.vae_tile is not None and self.runtime.device.type == "cpu":
            keep_no_gaps()
        self._vae = VAES[self.config.z_dim](
            z_dim=self.config.z_dim,
            vae_pth=part(self.checkpoint_dir, self.config.vae_checkpoint),
            device=self.runtime.device,
            tiling=self.runtime.vae_tile,
            frames_at_once=self.runtime.vae_frames,
            conv_dtype=self.runtime.conv_dtype,
        )
        return self._vae.model

    def _text_weights(self) -> Path:
        path = part(self.checkpoint_dir, self.config.t5_checkpoint)
        return freshest(path) if self.config.t5_dtype == torch.bfloat16 else path

    _text_encoder: T5EncoderModel | None = None
    _vae: Wan2_1_VAE | Wan2_2_VAE | None = None

    def _last_high_steps(self, request: Request, solver: FlowScheduler) -> int:
        """Step after which the second expert is read while the first one works; 0 when one of them has nothing to do.

        It is before the last steps of the first expert: until then the host needs no memory for the second one.
        """
        if request.boundary is None:
            return 0
        high = int((solver.timesteps >= request.boundary * self.config.num_train_timesteps).sum())
        return max(1, high - STEPS_AHEAD) if 0 < high < len(solver.timesteps) else 0

    def _load_expert(self, name: str) -> WanModel:
        offload, shard = self.weights.offload, self.replica.shard_dit
        return load_expert(self.checkpoint_dir, self.config, name, self.runtime, offload, shard)

    # ---- further attributes for upstream's scripts ----

    model, low_noise_model, high_noise_model = map(_expert, ("model", "low_noise_model", "high_noise_model"))
    boundary, num_train_timesteps, sample_neg_prompt = map(
        _of_config, ("boundary", "num_train_timesteps", "sample_neg_prompt")
    )
    vae_stride, patch_size = map(_of_config, ("vae_stride", "patch_size"))
    device = property(lambda self: self.runtime.device)
    param_dtype = property(lambda self: self.runtime.dtype)
    t5_cpu = property(lambda self: self.runtime.t5_device != self.runtime.device)
    sp_size = property(lambda self: self.runtime.parallel.ulysses_size)
    rank = property(lambda self: get_rank())


def _is_flat(values: Tensor, within: float = 0) -> bool:
    """Tell whether the values of each row of [C, N] differ by no more than `within`."""
    return bool((values.amax(1) - values.amin(1) <= within).all())


def _all_together(use_sp: bool, dit_fsdp: bool, t5_fsdp: bool) -> Parallel:
    """Fold upstream's flags of a constructor: any of them makes one replica of all processes, else each is alone."""
    if not (use_sp or dit_fsdp or t5_fsdp):
        return ALONE
    init_distributed_group()
    if get_world_size() == 1:
        raise ValueError(
            "use_sp, dit_fsdp and t5_fsdp need several processes, and this is one; start the program with torchrun "
            "--nproc_per_node=N, or leave them out"
        )
    return Parallel.from_flags(world_size=get_world_size(), dit_fsdp=dit_fsdp, t5_fsdp=t5_fsdp)
