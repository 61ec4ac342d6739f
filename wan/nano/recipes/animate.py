"""A picture and a performance to video: a VAE 2.1 for puppets and one model; the text encoder is that of t2v.

vae      the video VAE of speech to video, trained on for puppets and for drawings of their skeletons
decoder  its decoder alone, on longer crops; the latents stay as they are
faces    the motion encoder: it learns to tell mouth, eyes and turn of any face
clip     a CLIP tower: it learns to tell the parts of a figure and their colours
latents  clips of puppets that perform, encoded once, with pose, face and reference as named inputs
dit      one model for both modes, first and later clips, from nothing
export   the released folder layout, in bfloat16 and float16
"""

import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wan.conditioning import condition_mask
from wan.configs import nano_checkpoint
from wan.configs.wan_animate_14B import animate_14B
from wan.media import from_uint8
from wan.modules.animate import WanAnimateModel
from wan.modules.animate.clip import ClipVision, released_state
from wan.modules.animate.config import AnimateModelConfig
from wan.modules.animate.motion_encoder import FaceMotionEncoder
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE
from wan.nano import puppet_videos, puppets
from wan.nano.puppets import Puppet
from wan.nano.recipes import autoencoder, common, watcher
from wan.nano.recipes.common import TEXT_DIM, TEXT_LEN, Recipe
from wan.nano.recipes.s2v import plain_vae
from wan.training.config import FlowConfig, LoopConfig
from wan.training.data import CacheWriter, LatentCache
from wan.training.loop import Draw, fit
from wan.training.objective import FlowBatch
from wan.training.vae import VAELossConfig, reconstruction_psnr, vae_objective

CLIP = 33  # frames of a clip
UNSEEN = 12  # videos to look at
CROPS = ((0.6, 13, 32, 6), (1.0, 29, 32, 3))  # share of the run up to which it is used, frames, size, batch
DECODER_CROP = (29, 32, 3)
DIT = AnimateModelConfig(
    dim=128, ffn_dim=576, num_heads=4, num_layers=5, text_dim=TEXT_DIM, text_len=TEXT_LEN, image_dim=watcher.CLIP.dim,
    motion_encoder_size=puppets.FACE_SIZE, motion_encoder_channels={4: 48, 8: 32, 16: 24, 32: 16}, motion_style_dim=48,
    motion_dim=8, motion_encoder_dim=32, face_encoder_hidden_dim=48,
)  # fmt: skip
VAE_FILE = "Wan2.1_VAE.pth"
CAPTIONS = ("a person moves", "a round shape moves", "")
TAILS = (1, 5)  # frames that a clip takes over from the one before
AT_ONCE = 4  # shots that are encoded together
DROPPED = 0.1  # share of samples without text and face
BATCH = 16


@dataclass(frozen=True)
class Budget:
    """Amount of work of each stage."""

    vae_videos: int
    vae_steps: int
    decoder_steps: int
    faces: int
    face_steps: int
    figures: int
    clip_steps: int
    shots: int
    dit_steps: int


# ---------------------------------------------------------------- the VAE


def train_vae(folder: Path, budget: Budget) -> None:
    network = plain_vae(nano_checkpoint("s2v-14B") / "Wan2.1_VAE.safetensors")
    videos = stored_videos(folder / "puppets.npy", budget.vae_videos, seed=1)

    def draw(index: int) -> Tensor:
        share = (index + 1) / budget.vae_steps
        frames, size, batch = next(row[1:] for row in CROPS if share <= row[0])
        return autoencoder.draw_crops(videos, batch, frames, size, (6, index))

    losses = VAELossConfig(l1=0.3, l2=4.0, edge=0.3, noise=0.25, tone=10.0)
    config = replace(autoencoder.loop(budget.vae_steps, 2e-3), optimizer="muon-conv", ema_decay=0.99)
    fit_vae(network, folder, losses, draw, config, "animate-vae")
    autoencoder.standardise(network, videos, Wan2_1_VAE)
    store_vae(network, folder, folder / "animate-vae" / VAE_FILE)


def train_decoder(folder: Path, budget: Budget) -> None:
    network = plain_vae(folder / "animate-vae" / VAE_FILE)
    videos = stored_videos(folder / "puppets.npy", budget.vae_videos, seed=1)
    network.requires_grad_(False)
    for part in (network.decoder, network.conv2):
        part.requires_grad_(True)

    def draw(index: int) -> Tensor:
        frames, size, batch = DECODER_CROP
        return autoencoder.draw_crops(videos, batch, frames, size, (7, index))

    losses = VAELossConfig(l1=0.3, l2=4.0, edge=0.3, noise=0.25, tone=10.0)
    config = replace(autoencoder.loop(budget.decoder_steps, 1.5e-3), optimizer="muon-conv", ema_decay=0.99)
    fit_vae(network, folder, losses, draw, config, "animate-decoder")
    store_vae(network, folder, folder / VAE_FILE)


def fit_vae(
    network: CausalVAE2_1, folder: Path, losses: VAELossConfig, draw: Draw, config: LoopConfig, name: str
) -> None:
    unseen = stored_videos(folder / "puppets-unseen.npy", UNSEEN, seed=2)
    autoencoder.compile_parts(network)

    def preview(step: int) -> None:
        print(f"step {step}  unseen puppets {reconstruction_psnr(network, unseen):.2f} dB", flush=True)

    fit(network, vae_objective(network, losses), draw, config, folder / name, preview=preview)


def store_vae(network: CausalVAE2_1, folder: Path, path: Path) -> None:
    """Write the weights in float16, and print the PSNR of the stored ones."""
    state = {name: tensor.contiguous().half() for name, tensor in network.state_dict().items()}
    common.save(state, path)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    unseen = stored_videos(folder / "puppets-unseen.npy", UNSEEN, seed=2)
    print(f"as stored: unseen puppets {reconstruction_psnr(network, unseen):.2f} dB", flush=True)


def stored_videos(path: Path, count: int, seed: int) -> np.ndarray:
    """Map short videos from a file, which is written on first use: of puppets, of skeletons and of grounds alone.

    Those to look at (`UNSEEN`) are puppets.
    """
    if not path.exists() or len(np.load(path, mmap_mode="r")) != count:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.stack(list(_short_videos(count, seed, is_mixed=count != UNSEEN))))
    return np.load(path, mmap_mode="r")


def _short_videos(count: int, seed: int, is_mixed: bool) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for index in range(count):
        puppet = puppets.sample_puppet(rng, is_grey=is_mixed and index % 5 == 1)
        motion = puppets.sample_motion(rng, CLIP)
        larger = int(rng.choice((1, 1, 2)))
        if is_mixed and index % 8 == 3:
            yield puppet_videos.pose_video(puppet, motion, larger=larger)
            continue
        drawn = puppet_videos.render(puppet, motion, larger=larger)
        if is_mixed and index % 10 == 4:  # the ground of a replacement
            yield drawn.video * ~drawn.mask[..., None]
        else:
            yield drawn.video


def train_faces(folder: Path, budget: Budget) -> None:
    watcher.train_faces(DIT, folder, budget.faces, budget.face_steps)


def train_clip(folder: Path, budget: Budget) -> None:
    watcher.train_clip(folder, budget.figures, budget.clip_steps)


# ---------------------------------------------------------------- the transformer


Known = tuple[np.ndarray, np.ndarray]  # video float32 [F, H, W, 3] in 0..255 and what is kept of it, [F, H, W] in 0..1


@dataclass(frozen=True)
class Shot:
    """Clip of a figure, and what it is made from."""

    reference: np.ndarray  # uint8 [H, W, 3]
    video: np.ndarray  # uint8 [F, H, W, 3]
    pose: np.ndarray  # uint8 [F, H, W, 3]
    faces: list[np.ndarray]  # of several drivers, uint8 [F, 32, 32, 3]
    known: list[Known]  # of a first clip, and of a later one


def shots(count: int, seed: int) -> Iterator[Shot]:
    """Draw figures that perform; two of five take somebody's place.

    The figure of the clip has sometimes the proportions of another one than in the reference: those of the pose.
    """
    rng = np.random.default_rng(seed)
    for index in range(count):
        puppet = puppets.sample_puppet(rng, is_grey=index % 6 == 5)
        other = puppets.sample_puppet(rng, is_grey=rng.random() < 0.4)
        motion, is_replaced = puppets.sample_motion(rng, CLIP), index % 5 < 2
        shown = puppet if rng.random() < 0.7 else puppets.shaped_as(puppet, other)
        shown = puppets.in_front_of(shown, other) if is_replaced else shown
        drawn = puppet_videos.render(shown, motion, larger=int(rng.choice((1, 1, 2))))
        first = surroundings(rng, shown, drawn.mask) if is_replaced else unknown()
        yield Shot(
            puppet_videos.render(puppet, puppets.rest(rng), larger=int(rng.choice((1, 1, 2)))).video[0],
            drawn.video,
            stored(rng, puppet_videos.pose_video(shown, motion, larger=int(rng.choice((1, 1, 1, 2, 4))))),
            [stored(rng, watcher.face_video(rng, watcher.driver(rng, puppet), motion, shown)) for _ in range(2)],
            [first, continued(rng, first, drawn.video)],
        )


def unknown() -> Known:
    """Nothing is known: grey."""
    return np.full((CLIP, puppets.SIZE, puppets.SIZE, 3), 127.5, np.float32), np.zeros(
        (CLIP, puppets.SIZE, puppets.SIZE)
    )


def surroundings(rng: np.random.Generator, puppet: Puppet, mask: np.ndarray) -> Known:
    """The ground around a mask that has grown in one of several ways."""
    shape = str(rng.choice(("cells", "box", "grown")))
    place = puppet_videos.grown(mask, int(rng.integers(2, 7)), shape)
    video = np.broadcast_to(puppet_videos.without_figure(puppet), (*mask.shape, 3)) * ~place[..., None]
    return stored(rng, video.astype(np.float32)), 1.0 - place


def stored(rng: np.random.Generator, video: np.ndarray) -> np.ndarray:
    """Do to most videos [F, H, W, 3] what a file does: colours of half the sides, and small errors; float32."""
    if rng.random() < 0.4:
        return video.astype(np.float32)
    frames, height, width, _ = video.shape
    light = video @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    squares = (video - light[..., None]).reshape(frames, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4))
    noise = rng.normal(0, rng.uniform(0, 3), light.shape)
    return ((light + noise)[..., None] + squares.repeat(2, 1).repeat(2, 2)).clip(0, 255).astype(np.float32)


def continued(rng: np.random.Generator, known: Known, video: np.ndarray) -> Known:
    """Add the first frames of a clip, which the one before has made a little wrong."""
    count = int(rng.choice(TAILS))
    made, keep = known[0].copy(), known[1].copy()
    wrong = 1 + rng.normal(0, 0.03, 3), rng.normal(0, 4, 3), rng.normal(0, 3, (count, *made.shape[1:]))
    made[:count] = (video[:count] * wrong[0] + wrong[1] + wrong[2]).clip(0, 255)
    keep[:count] = 1
    return made, keep


def encode_latents(folder: Path, budget: Budget) -> None:
    """Write shots to a cache; faces as motion vectors, because their encoder is trained already."""
    vae, vision, faces = Wan2_1_VAE(vae_pth=folder / VAE_FILE), *encoders(folder)
    writer, drawn, started = CacheWriter(folder / "animate-latents"), shots(budget.shots, seed=21), time.monotonic()
    done = 0
    while batch := list(itertools.islice(drawn, AT_ONCE)):
        for shot, latents in zip(batch, encode_shots(vae, batch), strict=True):
            reference, video, pose, *known = latents
            inputs = {
                "clip_fea": vision.encode(picture(shot.reference[None])[0])[0],
                "face_pixel_values": torch.stack([motion_of(faces, video) for video in shot.faces]),
                "pose_latents": pose,
            }
            y = [
                torch.cat([masks(keep, latent), torch.cat([reference, latent], dim=1)])
                for latent, (_, keep) in zip(known, shot.known, strict=True)
            ]
            writer.add(torch.cat([reference, video], dim=1), CAPTIONS, y, inputs)
        done += len(batch)
        if done % 64 == 0:
            print(f"{done} shots  {time.monotonic() - started:.0f} s", flush=True)
    writer.close()


def encoders(folder: Path) -> tuple[ClipVision, FaceMotionEncoder]:
    """Load what the stages before have trained."""
    vision, faces = ClipVision(watcher.CLIP), FaceMotionEncoder(DIT)
    vision.load_state_dict(torch.load(folder / "animate-clip.pt", weights_only=True))
    faces.load_state_dict(torch.load(folder / "animate-faces.pt", weights_only=True))
    return vision.eval(), faces.eval()


def picture(frames: np.ndarray) -> Tensor:
    """uint8 or float32 [F, H, W, 3] in 0..255 -> float32 [F, 3, H, W] in [-1, 1]."""
    return from_uint8(torch.from_numpy(frames))


@torch.no_grad()
def motion_of(faces: FaceMotionEncoder, video: np.ndarray) -> Tensor:
    """Encode a face video to motion vectors, [F, motion_encoder_dim]."""
    return faces(picture(video))


def encode_shots(vae: Wan2_1_VAE, batch: list[Shot]) -> Iterator[list[Tensor]]:
    """Encode shots to latents: the reference, the video, the pose, and what is known of a first and a later clip."""
    references = autoencoder.encode(vae, torch.stack([picture(shot.reference[None]) for shot in batch]).transpose(1, 2))
    videos = [[shot.video, shot.pose, *(video for video, _ in shot.known)] for shot in batch]
    pixels = torch.stack([picture(video) for of_shot in videos for video in of_shot])
    latents = autoencoder.encode(vae, pixels.transpose(1, 2)).unflatten(0, (len(batch), -1))
    for reference, of_shot in zip(references, latents, strict=True):
        yield [reference, *of_shot]


def masks(keep: np.ndarray, latent: Tensor) -> Tensor:
    """Make the mask channels of a clip, with the reference frame in front: [4, 1 + T, h, w]."""
    mask = condition_mask(torch.from_numpy(keep).float(), len(keep), latent.shape[1:])
    return torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)


class MotionModel(WanAnimateModel):
    """Transformer in training: its faces [B, F, motion_encoder_dim] are encoded already."""

    def face_tokens(self, faces: Tensor) -> Tensor:
        return self.face_encoder(faces)

    def _check(self, *inputs: object) -> None:
        """Check nothing: the faces are no pictures."""


class Drawn(LatentCache):
    """Shots, with one of their drivers; a share has neither text nor face."""

    def __init__(self, folder: Path, blank: Tensor):
        super().__init__(folder)
        self.blank = blank  # [motion_encoder_dim] of a black face

    def draw(self, batch_size: int, seed: int, index: int) -> FlowBatch:
        batch, rng = super().draw(batch_size, seed, index), np.random.default_rng((seed, index, 1))
        faces = batch.inputs["face_pixel_values"]
        faces = faces[torch.arange(batch_size), torch.from_numpy(rng.integers(faces.shape[1], size=batch_size))]
        for sample in np.flatnonzero(rng.random(batch_size) < DROPPED).tolist():
            batch.captions[sample], faces[sample] = "", self.blank
        batch.inputs["face_pixel_values"] = faces
        return batch


def train_dit(folder: Path, budget: Budget) -> None:
    dit, (_, faces) = MotionModel(DIT), encoders(folder)
    init_dit(dit, faces, torch.Generator().manual_seed(13))
    blank = motion_of(faces, np.zeros((1, puppets.FACE_SIZE, puppets.FACE_SIZE, 3), np.uint8))[0]
    text = common.shipped_text(common.text_to_video_folder(folder))
    config = replace(common.dit_loop(budget.dit_steps), batch_size=BATCH)
    cache = Drawn(folder / "animate-latents", blank)
    common.fit_flow(dit, dit, text, FlowConfig(shift=3.0, text_dropout=0.0), cache, folder / "animate-dit", config)


@torch.no_grad()
def init_dit(dit: WanAnimateModel, faces: FaceMotionEncoder, generator: torch.Generator) -> None:
    """Draw weights, but for those of the motion encoder, which are not trained any more."""
    dit.init_weights(generator)
    for layer in (*dit.text_embedding, *dit.time_embedding):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
    dit.motion_encoder.load_state_dict(faces.state_dict())
    dit.motion_encoder.requires_grad_(False)


def export(folder: Path, budget: Budget) -> None:
    target = folder / "animate-14B"
    shutil.rmtree(target, ignore_errors=True)
    state = torch.load(folder / "animate-dit" / "model.pt", weights_only=True)
    common.write_dit(state, WanAnimateModel(DIT), target)
    vae = torch.load(folder / VAE_FILE, weights_only=True)
    save_file(vae, (target / VAE_FILE).with_suffix(".safetensors"), metadata={"format": "pt"})
    vision = {name: tensor.half().contiguous() for name, tensor in released_state(encoders(folder)[0]).items()}
    save_file(vision, (target / animate_14B.clip_checkpoint).with_suffix(".safetensors"), metadata={"format": "pt"})
    common.report_size(target)


RECIPE = Recipe(
    stages={
        "vae": train_vae,
        "decoder": train_decoder,
        "faces": train_faces,
        "clip": train_clip,
        "latents": encode_latents,
        "dit": train_dit,
        "export": export,
    },
    budgets={
        "full": Budget(
            600, 2500, decoder_steps=1000, faces=600, face_steps=1000, figures=3000, clip_steps=800, shots=3000,
            dit_steps=8000,
        ),
        "smoke": Budget(
            16, 4, decoder_steps=4, faces=4, face_steps=4, figures=8, clip_steps=4, shots=8, dit_steps=4
        ),
    },
    with_steps=lambda budget, steps: replace(
        budget, vae_steps=steps, decoder_steps=steps, face_steps=steps, clip_steps=steps, dit_steps=steps
    ),
)  # fmt: skip
