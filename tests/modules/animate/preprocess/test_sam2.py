"""SAM 2: names and loading of the released layout, and masks of chunks with a tiny random model."""

import numpy as np
import pytest
import torch

from wan.modules.animate.preprocess import sam2, segment as module
from wan.modules.animate.preprocess.segment import FILLED, fill_holes, segment

SIDE = 64  # pixels of the tiny model's input
WIDTH = 128  # channels; memories have 64, a number that Transformers fixes at one place


def tiny_config():
    import transformers

    decoder = {"hidden_size": WIDTH, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    names = (
        *("memory_attention_hidden_size", "memory_attention_feed_forward_hidden_size", "memory_encoder_hidden_size"),
        *("mask_downsampler_embed_dim", "memory_fuser_embed_dim"),
        "memory_fuser_intermediate_dim",
    )
    return sam2.config_of(
        backbone={
            **{"hidden_size": 8, "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 4]},
            **{"num_attention_heads": 1, "blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3]},
            **{"window_size_per_stage": [8, 4, 4, 2], "image_size": [SIDE, SIDE]},
        },
        vision={
            **{"backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": WIDTH},
            "backbone_feature_sizes": [[SIDE // part] * 2 for part in (4, 8, 16)],
        },
        prompt_encoder_config=transformers.Sam2VideoPromptEncoderConfig(hidden_size=WIDTH, image_size=SIDE),
        mask_decoder_config=transformers.Sam2VideoMaskDecoderConfig(**decoder),
        image_size=SIDE,
        memory_attention_rope_feat_sizes=[SIDE // 16] * 2,
        memory_attention_num_layers=1,
        **dict.fromkeys(names, WIDTH),
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = sam2.model_of(tiny_config()).eval()
    positions = model.prompt_encoder.shared_embedding.positional_embedding  # the file has them once
    model.shared_image_embedding.positional_embedding.copy_(positions)
    return model


def frames_of(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(count)]


CLICK = (np.array([[20, 20], [30, 10]], np.int32), np.array([1, 0], np.int32))


def test_a_released_file_is_loaded_strictly(model, tmp_path):
    path, state = tmp_path / "sam2.pt", sam2.released_state(model)
    torch.save(state, path)
    loaded = sam2.load_sam2(path, config=tiny_config())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    for name, buffer in model.named_buffers():  # also those that no file has
        assert torch.equal(loaded.get_buffer(name), buffer), name
    state["model"]["more"] = state["model"].pop("maskmem_tpos_enc")
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"(?s)missing.*memory_temporal_positional_encoding.*unexpected.*more"):
        sam2.load_sam2(path, config=tiny_config())


def test_weights_are_bfloat16_on_gpus_that_compute_with_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert {sam2.precision(device) for device in ("cpu", "cuda", torch.device("cuda:1"))} == {torch.float32}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert sam2.precision("cuda:1") == torch.bfloat16 and sam2.precision("cpu") == torch.float32
    torch.save(sam2.released_state(model), tmp_path / "sam2.pt")
    monkeypatch.setattr(sam2, "precision", lambda device: torch.bfloat16)
    loaded = sam2.load_sam2(tmp_path / "sam2.pt", config=tiny_config())
    tensors = (*loaded.parameters(), *loaded.buffers())
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.bfloat16}
    carried = np.zeros((40, 60), np.uint8)
    carried[10:30, 20:40] = 1
    first, *others = segment(loaded, frames_of(6), {0: CLICK, 3: CLICK}, before=carried)
    assert len(others) == 5 and (first != carried).mean() < 0.1


def test_every_frame_has_a_mask_and_clicks_matter(model):
    frames = frames_of(6)
    masks = [*segment(model, frames, {0: CLICK, 3: CLICK})]
    assert [mask.shape for mask in masks] == [(40, 60)] * 6
    assert all(mask.dtype == np.uint8 and mask.max() <= 1 for mask in masks)
    again = [*segment(model, frames, {0: CLICK, 3: CLICK})]
    np.testing.assert_array_equal(masks, again)
    moved = [*segment(model, frames, {0: (CLICK[0] + 20, CLICK[1])})]
    assert (moved[0] != masks[0]).any()


def test_frames_before_the_first_key_frame_are_tracked_too(model):
    masks = [*segment(model, frames_of(5), {3: CLICK})]
    assert len(masks) == 5 and any(mask.any() for mask in masks[:3])


def test_a_carried_mask_is_kept_and_replaces_the_clicks(model):
    carried = np.zeros((40, 60), np.uint8)
    carried[10:30, 20:40] = 1
    first, *others = segment(model, frames_of(3), {0: CLICK}, before=carried)
    assert len(others) == 2 and (first != carried).mean() < 0.1


@pytest.mark.parametrize("clicks", [{}, {0: (np.zeros((0, 2), np.int32), np.zeros(0, np.int32))}])
def test_without_clicks_masks_are_empty(model, clicks):
    assert not np.any([*segment(model, frames_of(2), clicks, before=np.zeros((40, 60), np.uint8))])


def test_memory_does_not_grow_with_the_chunk(model):
    session = []
    wrapped = sam2.session_of
    frames = frames_of(1) * 80
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "session_of", lambda *given: session.append(wrapped(*given)) or session[0])
        assert len([*segment(model, frames, {0: CLICK})]) == 80
    (outputs,) = session[0].output_dict_per_obj.values()
    assert len(outputs["non_cond_frame_outputs"]) <= 32
    assert not any("high_res_masks" in known for kind in outputs.values() for known in kind.values())


def test_small_holes_are_filled_and_large_ones_stay():
    logits = torch.ones(1, 1, 32, 32)
    logits[..., 3:5, 3:7] = -1  # 8 pixels
    logits[..., 10:13, 10:13] = -1  # 9 pixels
    for step in range(8):
        logits[..., 20 + step, 3 + step] = -1  # 8 pixels that touch by corners
    logits[..., 0, 20:] = -1
    logits[..., 1:9, 31] = -1  # a long line, open to the border
    filled = fill_holes(logits)
    assert (filled[..., 3:5, 3:7] == torch.tensor(FILLED)).all() and filled[..., 20, 3] > 0 and filled[..., 27, 10] > 0
    assert (filled[..., 10:13, 10:13] < 0).all() and (filled[..., 0, 20:] < 0).all()
    assert (filled[..., 1:9, 31] < 0).all()
    assert torch.equal(fill_holes(-torch.ones(1, 1, 9, 9)), -torch.ones(1, 1, 9, 9))


@pytest.mark.parametrize("as_upstream", [False, True])
def test_a_long_video_is_segmented_in_chunks_that_carry_masks(model, monkeypatch, as_upstream):
    seen = []

    def recorded(model, frames, clicks, before=None):
        seen.append((len(frames), sorted(clicks), before is not None))
        return segment(model, frames, clicks, before)

    for name in ("CHUNK", "UPSTREAM_CHUNK"):
        monkeypatch.setattr(module, name, 5)
    monkeypatch.setattr(module, "segment", recorded)
    masks = [*module.Sam2(model, as_upstream).masks(iter(frames_of(12)), lambda number: CLICK)]
    assert len(masks) == 12 and all(mask.shape == (40, 60) for mask in masks)
    assert seen[0] == (5, [0, 1, 2, 3, 4], False)
    if as_upstream:
        assert seen[1:] == [(5, [0, 1, 2, 3, 4], False), (2, [0], False)]
    else:
        carried = [bool(masks[4].any()), bool(masks[9].any())]
        assert [(count - has, has) for (count, _, has) in seen[1:]] == [(5, carried[0]), (2, carried[1])]
        assert any(carried)
