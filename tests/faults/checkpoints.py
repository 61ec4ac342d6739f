"""Faults of a checkpoint folder: descriptions, weights in every format, tokenizers, layouts of others."""

import json
from random import Random
from typing import Any

from tests.faults import damage, weights
from tests.faults.base import EXPERTS, T5, TOKENIZER, VAES, WEIGHTS
from tests.faults.scene import Input, Scene, draw_task, sample_flags
from tests.faults.texts import edited_json


def config(scene: Scene) -> Input:
    rng, task = scene.rng, draw_task(scene.rng)
    ckpt = scene.checkpoint(task)
    changed = EXPERTS[task] if rng.random() < 0.5 else EXPERTS[task][-1:]
    seed = rng.random()
    for expert in changed:  # the same change in each
        scene.rng = Random(seed)
        what = scene.spoil(ckpt / expert / "config.json", edited_json, special=0.3)
    return Input(f"{what} in {len(changed)}", ("config.json", changed[0]), sample_flags(task, ckpt))


def tensors(scene: Scene) -> Input:
    rng, task = scene.rng, draw_task(scene.rng)
    ckpt = scene.checkpoint(task)
    expert = rng.choice(EXPERTS[task])
    faulty = weights.faulty_length if rng.random() < 0.1 else weights.faulty_safetensors
    what = scene.spoil(ckpt / expert / WEIGHTS, faulty, special=0.4)
    return Input(f"{expert}: {what}", (WEIGHTS, expert, str(ckpt)), sample_flags(task, ckpt))


def shards(scene: Scene) -> Input:
    """Write an expert as indexed shards; the index, a shard or their names are wrong."""
    from safetensors.torch import load_file, save

    rng = scene.rng
    ckpt = scene.checkpoint("t2v-A14B")
    folder = ckpt / "low_noise_model"
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = [list(state)[i::3] for i in range(3)]
    files = [f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for file, part in zip(files, parts, strict=True):
        (folder / file).write_bytes(save({name: state[name] for name in part}))
    index = folder / (WEIGHTS + ".index.json")
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    victim = folder / rng.choice(files)
    way = rng.choice(("index", "index", "names", "shard", "gone", "renamed", "twice", "no index"))
    what = way
    if way == "index":
        what = scene.spoil(index, edited_json, special=0.3)
    elif way == "names":
        name = rng.choice(list(weight_map))
        weight_map[name] = rng.choice(
            ("../x.safetensors", str(scene.canary), "/etc/passwd", ".", "", "a\0.safetensors", files[0])
        )
        index.write_text(json.dumps({"weight_map": weight_map}))
    elif way == "shard":
        what = scene.spoil(victim, weights.faulty_safetensors)
    elif way == "gone":
        victim.unlink()
    elif way == "twice":
        (folder / "x-00001-of-00001.safetensors").write_bytes(victim.read_bytes())
    else:
        index.unlink()
        if way == "renamed":
            count = rng.choice(("00003", "99999", "00000", "00001"))
            victim.rename(
                folder / f"diffusion_pytorch_model-{rng.choice(('00001', '99998', '00000'))}-of-{count}.safetensors"
            )
    return Input(what, ("low_noise_model", "safetensors"), sample_flags("t2v-A14B", ckpt))


def pickled(scene: Scene) -> Input:
    """Damage the text encoder or the video autoencoder."""
    rng, task = scene.rng, draw_task(scene.rng)
    ckpt = scene.checkpoint(task)
    name = rng.choice((T5, VAES[task]))
    way = rng.random()
    if way < 0.3:
        what = scene.spoil(ckpt / name, weights.faulty_archive, special=0.2)
    elif way < 0.9:
        made, value = weights.faulty_state(rng, scene.base.state(task, name), scene.canary)
        try:
            form, content = weights.saved(rng, value)
        except Exception as error:  # the old format holds no tensor of some kinds
            form, content = f"not saved: {type(error).__name__}", b""
        if rng.random() < 0.15:
            more, content = damage.bytewise(rng, content)
            form += f", {more}"
        what = f"{made}, {form}"
        scene.replace(ckpt / name, content)
    else:
        from safetensors.torch import save

        form, content = weights.faulty_safetensors(rng, save(scene.base.state(task, name)))
        what = f"safetensors: {form}"
        scene.replace(ckpt / name, content)
    return Input(f"{name}: {what}", (name, str(ckpt)), sample_flags(task, ckpt))


def tokenizer(scene: Scene) -> Input:
    ckpt = scene.checkpoint("t2v-A14B")
    what = scene.spoil(ckpt / TOKENIZER, _edited_tokenizer, special=0.3)
    return Input(what, ("tokenizer",), sample_flags("t2v-A14B", ckpt))


def _edited_tokenizer(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Edit any value, or put in a part of another tokenizer, or one that no tokenizer should have."""
    if rng.random() < 0.5:
        return edited_json(rng, data)
    value = json.loads(data)
    part = rng.choice(sorted(TOKENIZER_PARTS))
    index = rng.randrange(len(TOKENIZER_PARTS[part]))
    value[part] = TOKENIZER_PARTS[part][index]
    return f"{part} {index}", json.dumps(value).encode()


def _added(number: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


def _cut(max_length: int, stride: int) -> dict[str, Any]:
    return {"max_length": max_length, "strategy": "LongestFirst", "stride": stride, "direction": "Right"}


WORDS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "circle": 5}
TEMPLATE = {"single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [], "special_tokens": {}}
TOKENIZER_PARTS: dict[str, tuple[Any, ...]] = {
    "model": (
        {"type": "BPE", "vocab": WORDS, "merges": []},
        {"type": "BPE", "vocab": WORDS, "merges": ["a b"]},
        {"type": "BPE", "vocab": WORDS, "merges": [["a", "zz"]]},
        {"type": "Unigram", "unk_id": 2, "vocab": [[word, -1.0] for word in WORDS]},
        {"type": "Unigram", "unk_id": 10**6, "vocab": [[word, -1.0] for word in WORDS]},
        {"type": "Unigram", "unk_id": None, "vocab": [["z", -1.0]]},
        {"type": "Unigram", "unk_id": 0, "vocab": []},
        {"type": "WordPiece", "vocab": {"a": 5}, "unk_token": "nowhere", "continuing_subword_prefix": "##"},
        {"type": "WordLevel", "vocab": {word: i * 10**4 for word, i in WORDS.items()}, "unk_token": "<unk>"},
        {"type": "WordLevel", "vocab": {"<unk>": 2**31}, "unk_token": "<unk>"},
        {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"},
    ),
    "normalizer": (
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
        {"type": "Replace", "pattern": {"Regex": "("}, "content": ""},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "NFKC"},
        {"type": "x"},
    ),
    "pre_tokenizer": (
        {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Removed", "invert": False},
        {"type": "Sequence", "pretokenizers": []},
        {"type": "Metaspace"},
        {"type": "ByteLevel"},
        None,
    ),
    "post_processor": ({"type": "TemplateProcessing", **TEMPLATE}, {"type": "BertProcessing"}),
    "added_tokens": ([_added(10**6, "a")], [_added(3, "")], [_added(2**31, "red circle")], [{"id": 5}]),
    "truncation": (_cut(0, 0), _cut(2, 5), _cut(2**63, 0)),
    "padding": (
        {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 10**6, "pad_type_id": 0, "pad_token": "x"},
    ),
}


def place(scene: Scene) -> Input:
    """Give something that resembles a checkpoint as one, with or without a damaged file in it."""
    rng, task = scene.rng, draw_task(scene.rng)
    ckpt = scene.checkpoint(task)
    expert = EXPERTS[task][-1]
    way = rng.choice(("inside", "parent", "file", "cache", "pipeline", "lora", "empty", "many", "other name"))
    target = ckpt
    if way == "inside":
        target = ckpt / rng.choice((expert, "google", "google/umt5-xxl"))
    elif way == "parent":
        target = scene.folder
    elif way == "file":
        target = ckpt / rng.choice(scene.base.files(task))
    elif way == "cache":
        target = scene.folder / "models--Wan-AI--Wan2.2" / rng.choice(("", "snapshots", "snapshots/0a"))
        (target if target.name == "0a" else target / "snapshots").mkdir(parents=True, exist_ok=True)
        ckpt = ckpt.rename(scene.folder / "models--Wan-AI--Wan2.2" / "snapshots" / "0a")
    elif way == "pipeline":
        index = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
        scene.replace(ckpt / "model_index.json", json.dumps(index).encode())
        for name, content in scene.base.diffusers.items():
            scene.replace(ckpt / "transformer" / name, content)
    elif way == "lora":
        scene.replace(ckpt / expert / "lora.safetensors", (ckpt / expert / WEIGHTS).read_bytes())
        scene.spoil(ckpt / expert / "lora.safetensors", weights.faulty_safetensors)
    elif way == "empty":
        target = scene.folder / "empty"
        target.mkdir()
    elif way == "many":
        for number in range(300):
            scene.replace(ckpt / f"{number}.safetensors", b"")
    else:
        target = ckpt.rename(scene.folder / rng.choice(("a\nb", "\x1b[31m", "-x", "猫" * 80, "a:b", "%s %d", "*")))
        ckpt = target
    what = way
    files = sorted(path for path in ckpt.rglob("*") if path.is_file())
    if rng.random() < 0.6:
        victim = rng.choice(files)
        what += f", {victim.name}: {scene.spoil(victim, edited_json if victim.suffix == '.json' else damage.bytewise)}"
    argv = sample_flags(task, target)
    return Input(what, (str(scene.folder),), argv if rng.random() < 0.5 else argv[2:])


def diffusers(scene: Scene) -> Input:
    """Damage a model folder in Diffusers' layout, or its weights alone, and read it from Python."""
    from wan.modules.model import WanModel

    rng = scene.rng
    folder = scene.folder / "transformer"
    for name, content in scene.base.diffusers.items():
        scene.replace(folder / name, content)
    if rng.random() < 0.5:
        what = scene.spoil(folder / "config.json", edited_json, special=0.3)
    else:
        what = scene.spoil(folder / WEIGHTS, weights.faulty_safetensors, special=0.3)
    target = folder if rng.random() < 0.7 else folder / WEIGHTS
    return Input(f"{target.name}: {what}", ("transformer",), call=lambda: WanModel.from_pretrained(target))
