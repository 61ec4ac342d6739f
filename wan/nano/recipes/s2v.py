"""Speech and an image to video: a VAE 2.1 for faces, a speech encoder and one model; the text encoder is that of t2v.

vae      the video VAE of text to video, trained on for faces that talk and for pictures of their poses
decoder  its decoder alone, on longer crops; the latents stay as they are
speech   the speech encoder: it learns to tell loudness, voicing and vowels of synthetic speech
latents  clips of faces that talk, encoded once, with speech, history and pose as named inputs
dit      one model for all timesteps, from nothing; first short clips, then also whole ones
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wan.modules.s2v import WanModel_S2V
from wan.modules.s2v.config import S2VModelConfig
from wan.modules.s2v.framepack import HISTORY_FRAMES
from wan.modules.speech import SpeechFeatures, load_speech_encoder
from wan.modules.vae2_1 import CausalVAE2_1, Wan2_1_VAE
from wan.nano import faces, speech
from wan.nano.recipes import autoencoder, common, listener
from wan.nano.recipes.common import TEXT_DIM, TEXT_LEN, Recipe
from wan.training.config import FlowConfig, LoopConfig
from wan.training.data import CacheWriter, LatentCache
from wan.training.loop import Draw, fit
from wan.training.vae import VAELossConfig, reconstruction_psnr, to_unit, vae_objective

CLIP = 33  # frames of a video for the VAE
UNSEEN = 16  # videos to look at
CROPS = ((0.5, 9, 32, 6), (1.0, 21, 32, 4))  # share of the run up to which it is used, frames, size, batch
DECODER_CROP = (29, 32, 4)  # crops of 9 frames alone leave a decoder that drifts in longer videos
VAE_FILE = "Wan2.1_VAE.pth"
SPEECH_FOLDER = "wav2vec2-large-xlsr-53-english"
DROPPED = 3  # frames of a video without history that are generated and left out
FRAMES = 160  # of a face for the transformer: two clips
SHORT, WHOLE = 8, 20  # latent frames of a clip to train on
STARTS = {SHORT: 4, WHOLE: 1}  # clips with history that are taken of one face
BATCH = {SHORT: 16, WHOLE: 8}
AT_ONCE = 4  # videos that are encoded together
DIT = S2VModelConfig(
    dim=128, ffn_dim=480, num_heads=4, num_layers=4, text_dim=TEXT_DIM, text_len=TEXT_LEN,
    audio_dim=listener.SPEECH["hidden_size"], audio_layers=listener.SPEECH["num_hidden_layers"] + 1,
    audio_inject_layers=(0, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """Amount of work of each stage."""

    vae_videos: int
    vae_steps: int
    decoder_steps: int
    speeches: int
    speech_steps: int
    videos: tuple[int, int]  # of two clips, of one short clip
    dit_steps: tuple[int, int]  # short clips, whole clips


# ---------------------------------------------------------------- the VAE


def train_vae(folder: Path, budget: Budget) -> None:
    network = plain_vae(common.text_to_video_folder(folder) / VAE_FILE)
    videos = talking_videos(folder / "faces.npy", budget.vae_videos, seed=1)

    def draw(index: int) -> Tensor:
        share = (index + 1) / budget.vae_steps
        frames, size, batch = next(row[1:] for row in CROPS if share <= row[0])
        return autoencoder.draw_crops(videos, batch, frames, size, (4, index))

    losses = VAELossConfig(l1=0.2, l2=4.0, edge=0.3, noise=0.25, moving=3.0, tone=40.0)
    fit_vae(network, folder, losses, draw, autoencoder.loop(budget.vae_steps, 1.2e-3), "s2v-vae")
    autoencoder.standardise(network, videos, Wan2_1_VAE)
    store_vae(network, folder, folder / "s2v-vae" / VAE_FILE)


def train_decoder(folder: Path, budget: Budget) -> None:
    network = plain_vae(folder / "s2v-vae" / VAE_FILE)
    videos = talking_videos(folder / "faces.npy", budget.vae_videos, seed=1)
    network.requires_grad_(False)
    for part in (network.decoder, network.conv2):
        part.requires_grad_(True)

    def draw(index: int) -> Tensor:
        frames, size, batch = DECODER_CROP
        return autoencoder.draw_crops(videos, batch, frames, size, (5, index))

    losses = VAELossConfig(l1=0.3, l2=4.0, edge=0.4, noise=0.25, moving=3.0, tone=40.0)
    fit_vae(network, folder, losses, draw, autoencoder.loop(budget.decoder_steps, 4e-4), "s2v-decoder")
    store_vae(network, folder, folder / VAE_FILE)


def plain_vae(path: Path) -> CausalVAE2_1:
    """Load a VAE in float32, without the kernels for inference."""
    loaded = Wan2_1_VAE(vae_pth=path).model
    network = CausalVAE2_1(loaded.config)
    network.load_state_dict({name: tensor.float() for name, tensor in loaded.state_dict().items()})
    return network


def fit_vae(
    network: CausalVAE2_1, folder: Path, losses: VAELossConfig, draw: Draw, config: LoopConfig, name: str
) -> None:
    unseen = talking_videos(folder / "faces-unseen.npy", UNSEEN, seed=2)
    autoencoder.compile_parts(network)

    def preview(step: int) -> None:
        print(f"step {step}  {mouth_score(network, unseen)}", flush=True)

    fit(network, vae_objective(network, losses), draw, config, folder / name, preview=preview)


def store_vae(network: CausalVAE2_1, folder: Path, path: Path) -> None:
    """Write the weights in float16, and print the score of the stored ones."""
    state = {name: tensor.contiguous().half() for name, tensor in network.state_dict().items()}
    common.save(state, path)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    print(f"as stored: {mouth_score(network, talking_videos(folder / 'faces-unseen.npy', UNSEEN, seed=2))}", flush=True)


def talking_videos(path: Path, count: int, seed: int) -> np.ndarray:
    """Map short videos from a file, which is written on first use: faces at rest and in motion, poses, an empty one."""
    if not path.exists() or len(np.load(path, mmap_mode="r")) != count:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.stack(list(_short_videos(count, seed))))
    return np.load(path, mmap_mode="r")


def _short_videos(count: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    mouths: list[np.ndarray] = []
    for index in range(count):
        if not mouths:
            loudness = speech.envelope(speech.speak(8 * CLIP / 16, int(rng.integers(2**31))).samples)
            mouths = [loudness[i : i + CLIP] for i in range(0, 8 * CLIP, CLIP)]
        face, mouth = faces.sample_face(rng), mouths.pop()
        moves = index % 3 == 0
        path = faces.wander(face, CLIP, rng) if moves else faces.still(face, CLIP)
        if index % 12 == 0:
            yield faces.pose_video(face, path)
        elif index % 97 == 1:  # the history before the first frame
            yield np.full((CLIP, faces.SIZE, faces.SIZE, 3), 128, np.uint8)
        else:
            yield faces.render(face, mouth, path)


@torch.no_grad()
def mouth_score(vae: torch.nn.Module, videos: np.ndarray) -> str:
    """PSNR, and the correlation of the mouth's opening before and after the VAE."""
    talking = [video for video in videos if faces.redness(video).max() > 0.5 and faces.opening(video).std() > 0.05]
    values = []
    for video in talking:
        again = vae.decode(vae.encode(to_unit(video[None]))).clamp(-1, 1)[0]
        pixels = ((again.permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()
        values.append(np.corrcoef(faces.opening(pixels), faces.opening(video))[0, 1])
    return (
        f"unseen faces {reconstruction_psnr(vae, videos):.2f} dB, mouth {np.mean(values):.4f}, worst {min(values):.4f}"
    )


def train_speech(folder: Path, budget: Budget) -> None:
    listener.train(folder, folder / SPEECH_FOLDER, budget.speeches, budget.speech_steps)


# ---------------------------------------------------------------- the transformer


@dataclass(frozen=True)
class Talk:
    """Video of a face, with its reference picture in front, and what it was made from."""

    video: np.ndarray  # uint8 [1 + F, H, W, 3]
    pose: np.ndarray | None  # uint8 [F, H, W, 3]
    features: Tensor  # [layers, C, F] of the speech encoder
    captions: list[str]


def talks(count: int, seed: int, encoder: nn.Module, frames: int = FRAMES) -> Iterator[Talk]:
    """Draw faces that talk; of two in five the head moves, as a pose video shows.

    Frame i has the sound of frame i - 3, at least 0: a video without history begins with frames that are left out.
    """
    rng = np.random.default_rng(seed)
    for index in range(count):
        face, voice = faces.sample_face(rng), int(rng.integers(2**31))
        samples = speech.speak((frames - DROPPED) / speech.VIDEO_FPS, voice).samples
        mouth = speech.envelope(samples, frames=frames - DROPPED)
        mouth = np.concatenate([np.repeat(mouth[:1], DROPPED), mouth])
        moves = index % 5 < 2
        path = faces.wander(face, frames, rng) if moves else faces.still(face, frames)
        shown = float(rng.uniform(0, 0.8)) if rng.random() < 0.4 else 0.0
        reference = faces.render(face, np.array([shown], np.float32), faces.still(face, 1))
        yield Talk(
            np.concatenate([reference, faces.render(face, mouth, path)]),
            faces.pose_video(face, path) if moves else None,
            SpeechFeatures(encoder, torch.from_numpy(samples)).clip(-DROPPED, frames)[0],
            [faces.caption(face, rng) for _ in range(2)],
        )


def encode_latents(folder: Path, budget: Budget) -> None:
    """Write clips to a cache: first ones, and ones with history.

    Encoders look back only. So one pass over a video gives the latents of all clips but for the first latent frame of a
    history, which is encoded as a video's first frame.
    """
    encoder, long, brief = load_speech_encoder(folder / SPEECH_FOLDER), *budget.videos
    drawn = itertools.chain(talks(long, 11, encoder), talks(brief, 12, encoder, 4 * SHORT))
    vae = Wan2_1_VAE(vae_pth=folder / VAE_FILE)
    rng, started, done = np.random.default_rng(11), time.monotonic(), 0
    writers = {length: CacheWriter(folder / f"s2v-latents-{length}") for length in (SHORT, WHOLE)}
    while batch := list(itertools.islice(drawn, AT_ONCE)):
        for sample in encode_talks(vae, batch):
            for length, writer in writers.items():
                for latent, inputs in clips(*sample[1:], length, rng):
                    writer.add(latent, sample[0].captions, inputs=inputs)
        done += len(batch)
        if done % 64 == 0:
            print(f"{done} videos  {time.monotonic() - started:.0f} s", flush=True)
    for writer in writers.values():
        writer.close()


Encoded = tuple[Talk, Tensor, Tensor, "Tensor | None", Tensor]


def encode_talks(vae: Wan2_1_VAE, batch: list[Talk]) -> Iterator[Encoded]:
    """Encode videos of one length: latents, each latent frame's last picture alone, and the pose.

    A pose video stands behind a copy of its first frame, whose latent is left out, as in the pipeline.
    """
    latents = autoencoder.encode(vae, to_unit(np.stack([talk.video for talk in batch])))
    posed = [talk for talk in batch if talk.pose is not None]
    poses = iter(())
    if posed:
        frames = np.stack([np.concatenate([talk.pose[:1], talk.pose]) for talk in posed])
        poses = iter(autoencoder.encode(vae, to_unit(frames))[:, :, 1:])
    for talk, latent in zip(batch, latents, strict=True):
        pictures = autoencoder.encode(vae, to_unit(talk.video[::4, None])).transpose(0, 2)[0]  # [16, T, h, w]
        yield talk, latent, pictures, None if talk.pose is None else next(poses), talk.features


def clips(
    latents: Tensor, pictures: Tensor, pose: Tensor | None, features: Tensor, length: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Cut clips of `length` latent frames with the inputs of the model: a first one, and some with history."""
    last = latents.shape[1]
    later = np.arange(1 + HISTORY_FRAMES, last - length + 1)
    chosen = rng.choice(later, size=min(len(later), STARTS[length]), replace=False)
    for start in (1, *sorted(chosen.tolist())) if last > length else ():
        inputs = {"ref_latents": latents[:, :1]}
        inputs["audio_input"] = features[..., 4 * (start - 1) : 4 * (start - 1 + length)]
        if start > 1:  # the 73 frames before; the first of them is a video's first frame
            first = start - HISTORY_FRAMES
            inputs["motion_latents"] = torch.cat([pictures[:, first : first + 1], latents[:, first + 1 : start]], dim=1)
        if pose is not None:
            inputs["cond_states"] = pose[:, start - 1 : start - 1 + length]
        yield latents[:, start : start + length], inputs


def train_dit(folder: Path, budget: Budget) -> None:
    dit = WanModel_S2V(DIT)
    init_dit(dit, torch.Generator().manual_seed(12))
    text = common.shipped_text(common.text_to_video_folder(folder))
    flow = FlowConfig(shift=3.0, dropped_inputs=("audio_input",))
    for length, steps in zip((SHORT, WHOLE), budget.dit_steps, strict=True):
        rate = 2e-3 if length == SHORT else 1e-3
        config = replace(common.dit_loop(steps, rate), batch_size=BATCH[length], compile=length == SHORT)
        cache = LatentCache(folder / f"s2v-latents-{length}")
        common.fit_flow(dit, dit, text, flow, cache, folder / f"s2v-dit-{length}", config)


@torch.no_grad()
def init_dit(dit: WanModel_S2V, generator: torch.Generator) -> None:
    """Draw weights; states of the speech encoder count alike at first."""
    dit.init_weights(generator)
    for layer in (*dit.text_embedding, *dit.time_embedding):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
    dit.casual_audio_encoder.weights.fill_(1.0)


def export(folder: Path, budget: Budget) -> None:
    target = folder / "s2v-14B"
    shutil.rmtree(target, ignore_errors=True)
    state = torch.load(folder / f"s2v-dit-{WHOLE}" / "model.pt", weights_only=True)
    common.write_dit(state, WanModel_S2V(DIT), target)
    vae = torch.load(folder / VAE_FILE, weights_only=True)
    save_file(vae, (target / VAE_FILE).with_suffix(".safetensors"), metadata={"format": "pt"})  # smaller than a .pth
    shutil.copytree(folder / SPEECH_FOLDER, target / SPEECH_FOLDER)
    speech_file = target / SPEECH_FOLDER / "model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(speech_file).items()}
    save_file(halves, speech_file, metadata={"format": "pt"})
    common.report_size(target)


RECIPE = Recipe(
    stages={
        "vae": train_vae,
        "decoder": train_decoder,
        "speech": train_speech,
        "latents": encode_latents,
        "dit": train_dit,
        "export": export,
    },
    budgets={
        "full": Budget(
            600, 1300, decoder_steps=700, speeches=300, speech_steps=750, videos=(240, 640), dit_steps=(2900, 700)
        ),
        "smoke": Budget(16, 4, decoder_steps=4, speeches=4, speech_steps=8, videos=(4, 4), dit_steps=(4, 4)),
    },
    with_steps=lambda budget, steps: replace(
        budget, vae_steps=steps, decoder_steps=steps, speech_steps=steps, dit_steps=(steps, steps)
    ),
)
