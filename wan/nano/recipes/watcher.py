"""Train the two encoders of pictures: one tells the state of any face, the other the colours of a figure's parts."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.media import from_uint8
from wan.modules.animate.clip import ClipConfig, ClipVision, preprocess
from wan.modules.animate.config import AnimateModelConfig
from wan.modules.animate.motion_encoder import FaceMotionEncoder
from wan.nano import puppet_videos, puppets
from wan.nano.puppets import Motion, Puppet
from wan.nano.recipes import common
from wan.training.config import LoopConfig
from wan.training.loop import fit
from wan.training.loss import Loss

FACE_STATES = ("mouth", "eyes", "turn", "tilt")
CLIP = ClipConfig(image_size=64, patch_size=4, dim=32, mlp_dim=64, num_heads=16, num_layers=2)
FRAMES = 16  # of a face


# ---------------------------------------------------------------- faces


class Watcher(nn.Module):
    """Motion encoder in training, and what reads the state of a face from its motion vector."""

    def __init__(self, config: AnimateModelConfig):
        super().__init__()
        self.encoder = FaceMotionEncoder(config)
        self.told = nn.Linear(config.motion_encoder_dim, len(FACE_STATES))
        for name, parameter in self.encoder.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter)

    def forward(self, faces: Tensor) -> Tensor:
        """faces [N, 3, S, S] -> states [N, 4]."""
        directions = self.encoder.dec["direction"]
        return self.told(directions(self.encoder.coefficients(faces)))


def train_faces(config: AnimateModelConfig, folder: Path, faces: int, steps: int) -> None:
    """Train from nothing, and write the encoder to `folder/animate-faces.pt`."""
    torch.manual_seed(8)
    watcher = Watcher(config)
    pictures, states = stored_faces(folder / "animate-faces.npz", faces, seed=3)
    unseen = stored_faces(folder / "animate-faces-unseen.npz", min(faces, 40), seed=4)

    def draw(index: int) -> tuple[Tensor, Tensor]:
        rows = np.random.default_rng((10, index)).integers(len(pictures), size=64)
        return _unit(pictures[rows]), torch.from_numpy(states[rows])

    def objective(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Loss:
        loss = F.mse_loss(watcher(batch[0]), batch[1])
        return Loss(loss, {})

    def preview(step: int) -> None:
        print(f"step {step}  {face_score(watcher, *unseen)}", flush=True)

    fit(watcher, objective, draw, _loop(steps, 6e-3), folder / "animate-faces", preview=preview)
    common.save(watcher.encoder.state_dict(), folder / "animate-faces.pt")
    print(f"at the end: {face_score(watcher, *unseen)}", flush=True)


def face_video(rng: np.random.Generator, puppet: Puppet, motion: Motion, shape: Puppet | None = None) -> np.ndarray:
    """Draw the face of a driver as one of many recordings would show it: uint8 [F, 32, 32, 3].

    Some have markers. Some are drawn larger, or cut from a frame of 64 pixels. The cut varies. The driver has the
    proportions of `shape`.
    """
    puppet = puppets.shaped_as(puppet, shape or puppet)
    box = puppets.face_box(puppet, motion, puppets.joints(puppet, motion))
    side = box[:, 2:] * rng.uniform(0.85, 1.15)
    moved = rng.uniform(-0.08, 0.08, 2) * box[:, 2:]
    box = np.concatenate([box[:, :2] + (box[:, 2:] - side) / 2 + moved, side], axis=1)
    markers = float(rng.uniform(0.012, 0.022)) if rng.random() < 0.5 else 0.0
    if rng.random() < 0.3:
        return cut(puppet_videos.render(puppet, motion, markers=markers).video, box, puppets.FACE_SIZE)
    return puppet_videos.render(
        puppet, motion, puppets.FACE_SIZE, box, markers, larger=int(rng.choice((1, 1, 2)))
    ).video


def cut(video: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Cut squares [F, 3] from frames uint8 [F, H, W, 3], and resize them with linear interpolation."""
    places = torch.from_numpy(2 * (box[:, :2] + box[:, 2:] / 2) - 1).float()
    steps = (torch.arange(size) + 0.5) / size * 2 - 1
    half = torch.from_numpy(box[:, 2]).float()[:, None]
    x, y = places[:, :1] + half * steps, places[:, 1:] + half * steps
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).float()
    found = F.grid_sample(frames, grid, align_corners=False, padding_mode="border")
    return found.permute(0, 2, 3, 1).round().byte().numpy()


def driver(rng: np.random.Generator, like: Puppet) -> Puppet:
    """Draw who performs: the figure itself, another one, or one without colours."""
    kind = rng.random()
    return like if kind < 0.25 else puppets.sample_puppet(rng, is_grey=kind > 0.6)


def stored_faces(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Map faces, uint8 [N, 32, 32, 3], and their states, float32 [N, 4], from a file that is written on first use."""
    if not path.exists():
        rng, pictures, states = np.random.default_rng(seed), [], []
        for _ in range(count):
            puppet = driver(rng, puppets.sample_puppet(rng))
            motion = puppets.sample_motion(rng, 6 * FRAMES)[::6]
            pictures.append(face_video(rng, puppet, motion))
            states.append(
                np.stack([getattr(motion, name) for name in FACE_STATES[:3]] + [motion.lean + motion.tilt], 1)
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, pictures=np.concatenate(pictures), states=np.concatenate(states))
    with np.load(path) as file:
        return file["pictures"], file["states"]


@torch.no_grad()
def face_score(watcher: Watcher, pictures: np.ndarray, states: np.ndarray) -> str:
    """Correlation of what is told of unseen faces with their states, and the share of right mouths."""
    told = torch.cat([watcher(_unit(part)) for part in np.array_split(pictures, max(1, len(pictures) // 128))]).numpy()
    values = [f"{name} {np.corrcoef(told[:, n], states[:, n])[0, 1]:.3f}" for n, name in enumerate(FACE_STATES)]
    right = ((told[:, 0] > 0.5) == (states[:, 0] > 0.5)).mean()
    return f"{', '.join(values)}, mouths right {right:.1%}"


# ---------------------------------------------------------------- pictures


class Looker(nn.Module):
    """Vision tower in training, and what reads parts from the tokens of patches, and their colours from all."""

    def __init__(self):
        super().__init__()
        self.vision = ClipVision(CLIP)
        self.part = nn.Linear(CLIP.dim, puppets.MOUTH + 1 + 3)
        self.colours = nn.Linear(CLIP.dim, 3 * len(puppets.PARTS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pixels [B, 3, 64, 64] -> labels [B, 256, parts], colours of patches [B, 256, 3], of parts [B, 7, 3]."""
        tokens = self.vision(pixels)
        told = self.part(tokens[:, 1:])
        return told[..., :-3], told[..., -3:], self.colours(tokens[:, 0]).unflatten(-1, (-1, 3))


def train_clip(folder: Path, figures: int, steps: int) -> None:
    """Train from nothing, and write the tower to `folder/animate-clip.pt`."""
    torch.manual_seed(9)
    looker = Looker()
    pictures, labels, colours = stored_figures(folder / "animate-figures.npz", figures, seed=5)
    unseen = stored_figures(folder / "animate-figures-unseen.npz", min(figures, 64), seed=6)

    def draw(index: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = np.random.default_rng((11, index)).integers(len(pictures), size=8)
        return _for_clip(pictures[rows]), torch.from_numpy(labels[rows]).long(), torch.from_numpy(colours[rows])

    def objective(batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Loss:
        pixels, places, wanted = batch
        part, patch, told = looker(pixels)
        labelled = F.cross_entropy(part.flatten(0, 1), places.flatten())
        near = F.mse_loss(patch, F.avg_pool2d(pixels, CLIP.patch_size).flatten(2).mT)
        coloured = F.mse_loss(told, wanted)
        return Loss(labelled + near + coloured, {"part": labelled, "patch": near, "colour": coloured})

    def preview(step: int) -> None:
        print(f"step {step}  {picture_score(looker, *unseen)}", flush=True)

    fit(looker, objective, draw, _loop(steps, 3e-3), folder / "animate-clip", preview=preview)
    common.save(looker.vision.state_dict(), folder / "animate-clip.pt")
    print(f"at the end: {picture_score(looker, *unseen)}", flush=True)


def stored_figures(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map pictures of figures, the label of each patch [N, 256], and the colours of parts, from a file."""
    if not path.exists():
        rng, found = np.random.default_rng(seed), []
        for index in range(count):
            puppet = puppets.sample_puppet(rng, is_grey=index % 5 == 0)
            drawn = puppet_videos.render(puppet, puppets.rest(rng))
            middle = drawn.labels[0, 2::4, 2::4].flatten()
            found.append((drawn.video[0], middle, np.array(puppet.colours, np.float32) / 127.5 - 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path, **dict(zip(("pictures", "labels", "colours"), map(np.stack, zip(*found, strict=True)), strict=True))
        )
    with np.load(path) as file:
        return file["pictures"], file["labels"], file["colours"]


@torch.no_grad()
def picture_score(looker: Looker, pictures: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> str:
    """Shares of patches whose part is told, and the error of the colours of parts, of unseen figures."""
    part, _, told = looker(_for_clip(pictures))
    right = (part.argmax(-1).numpy() == labels)[labels > 0].mean()
    error = np.sqrt(np.square(told.numpy() - colours).mean()) * 127.5
    return f"parts {right:.1%}, colours off by {error:.1f} of 255"


def _for_clip(pictures: np.ndarray) -> Tensor:
    return torch.cat([preprocess(picture, CLIP.image_size) for picture in _unit(pictures)])


def _unit(pictures: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in [-1, 1]."""
    return from_uint8(torch.from_numpy(pictures))


def _loop(steps: int, learning_rate: float) -> LoopConfig:
    return LoopConfig(
        steps=steps,
        learning_rate=learning_rate,
        final_learning_rate=learning_rate / 100,
        warmup_steps=min(50, steps // 4),
        ema_decay=0.99,
        seed=8,
        log_every=max(1, min(100, steps // 4)),
        checkpoint_every=500,
        preview_every=max(1, min(500, steps // 2)),
    )
