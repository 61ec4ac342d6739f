"""The rename rules against the published key maps, name by name, at the released sizes."""

import json

import pytest

from tests.checkpoint.published import DATA, core_map, manifest
from wan.checkpoint.formats import COMFYUI_PREFIX, describe_contents, released_names, unread_form, what_is


@pytest.mark.parametrize(("name", "blocks"), [("wan_t2v_A14B", 40), ("wan_i2v_A14B", 40), ("wan_ti2v_5B", 30)])
def test_diffusers_transformer(name, blocks):
    expected = core_map("dit", blocks)
    assert expected.keys() == manifest(name).keys()
    renamed, layout = released_names(expected.values())
    assert renamed == expected
    assert "Diffusers" in layout


def test_transformers_umt5():
    expected = core_map("umt5", 24)
    assert expected.keys() == manifest("umt5_xxl_encoder").keys()
    tied = [*expected.values(), "encoder.embed_tokens.weight", "spiece_model"]
    for names in (list(expected.values()), tied, tied[::-1]):
        renamed, layout = released_names(names)
        assert renamed == expected
        assert "umT5" in layout


def test_transformers_umt5_with_the_embedding_only_under_its_tied_name():
    names = [name for name in core_map("umt5", 2).values() if name != "shared.weight"]
    assert released_names([*names, "encoder.embed_tokens.weight"])[0]["token_embedding.weight"] == (
        "encoder.embed_tokens.weight"
    )


@pytest.mark.parametrize(("name", "title"), [("wan2_1_vae", "VAE 2.1"), ("wan2_2_vae", "VAE 2.2")])
def test_diffusers_vae(name, title):
    expected = json.loads((DATA / "vae_diffusers_keymap.json").read_text())["map"][name]
    assert expected.keys() == manifest(name).keys()
    renamed, layout = released_names(expected.values())
    assert renamed == expected
    assert title in layout


@pytest.mark.parametrize("name", ["wan_t2v_A14B", "umt5_xxl_encoder", "wan2_1_vae", "wan2_2_vae"])
def test_released_names_stay(name):
    names = manifest(name)
    assert released_names(names) == ({key: key for key in names}, None)
    prefixed, layout = released_names(COMFYUI_PREFIX + key for key in names)
    assert prefixed == {key: COMFYUI_PREFIX + key for key in names}
    assert "ComfyUI" in layout


def test_unknown_names_survive_for_the_strict_comparison():
    names = [*core_map("dit", 1).values(), "blocks.0.extra.weight"]
    assert released_names(names)[0]["blocks.0.extra.weight"] == "blocks.0.extra.weight"


def test_two_names_for_one_tensor_are_refused():
    names = [*core_map("dit", 1).values(), "blocks.0.self_attn.q.weight"]
    with pytest.raises(ValueError, match=r"both blocks\.0\.self_attn\.q\.weight: .*attn1\.to_q"):
        released_names(names)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (manifest("wan_t2v_A14B"), "T2V-A14B"),
        (manifest("wan_i2v_A14B"), "I2V-A14B"),
        (manifest("wan_ti2v_5B"), "TI2V-5B"),
        (manifest("umt5_xxl_encoder"), "umT5"),
        (manifest("wan2_1_vae"), "VAE 2.1"),
        (manifest("wan2_2_vae"), "VAE 2.2"),
        (manifest("wan_i2v_A14B") | {"img_emb.proj.0.bias": (1280,)}, r"Wan2.1 image-to-video"),
        (manifest("wan_t2v_A14B") | {"scaled_fp8": (2,), "blocks.0.ffn.0.scale_weight": ()}, "quantised"),
        (manifest("wan_t2v_A14B") | {"face_adapter.fuser_blocks.0.k_norm.weight": (1,)}, "Animate"),
        ({"blocks.0.self_attn.q.lora_A.weight": (4, 8)}, "LoRA"),
        ({"something.weight": (1,)}, None),
    ],
)
def test_contents_are_recognised(shapes, words):
    found = describe_contents(shapes)
    assert found is None if words is None else words in found


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["blocks.0.self_attn.q.lora_A.weight", "blocks.0.self_attn.q.lora_B.weight"], "a LoRA"),
        (["diffusion_model.blocks.0.self_attn.q.lora_down.weight", "diffusion_model.blocks.0.x.alpha"], "a LoRA"),
        (["lora_unet_blocks_0_self_attn_q.lora_down.weight"], "a LoRA"),
        (["lora_unet__blocks_0_self_attn_q.alpha"], "a LoRA"),
        (["transformer.blocks.0.attn1.to_q.lora_A.default.weight"], "a LoRA"),
        (["blocks.0.self_attn.q.lora.down.weight"], "a LoRA"),
        (["blocks.0.attn1.to_q_lora.up.weight"], "a LoRA"),
        (["blocks.0.self_attn.q.lora_linear_layer.down.weight"], "a LoRA"),
        (["blocks.0.self_attn.q.hada_w1_a"], "a LoRA"),
        (["lycoris_blocks_0_attn1_to_q.lokr_w1"], "a LoRA"),
        (["blocks.0.norm3.diff", "blocks.0.norm3.diff_b"], "a LoRA"),
        (["blocks.0.diff_m"], "a LoRA"),
        (["blocks.0.ffn.0.weight", "blocks.0.ffn.0.scale_weight"], "quantised"),
        (["blocks.0.ffn.0.weight", "blocks.0.ffn.0.weight_scale"], "quantised"),
        (["blocks.0.ffn.0.weight", "blocks.0.ffn.0.comfy_quant"], "quantised"),
        (["blocks.0.ffn.0.weight", "blocks.0.ffn.0.weight_global_scale"], "quantised"),
        (["blocks.0.ffn.0.weight", "blocks.0.ffn.0.weight.quant_state.bitsandbytes__nf4"], "quantised"),
        (["blocks.0.ffn.0.qweight"], "quantised"),
        (["transformer.patch_embedding.weight", "transformer.head.modulation"], "begin with transformer."),
        (["_orig_mod.patch_embedding.weight"], "begin with _orig_mod."),
        (["model.encoder.conv1.weight", "model.conv2.weight"], "begin with model."),
        (["decoder.block.0.layer.0.SelfAttention.q.weight"], None),
    ],
)
def test_forms_that_are_not_read(names, words):
    found = unread_form(dict.fromkeys(names, (4, 4)), {})
    assert found is None if words is None else words in found


@pytest.mark.parametrize("name", ["wan_t2v_A14B", "wan_i2v_A14B", "wan_ti2v_5B", "umt5_xxl_encoder", "wan2_1_vae"])
def test_forms_that_are_read(name):
    shapes = manifest(name) | {"spiece_model": (4_548_313,)}  # bytes, in ComfyUI's text encoders
    assert unread_form(shapes, dict.fromkeys(shapes, "bfloat16") | {"spiece_model": "uint8"}) is None
    assert "int8" in unread_form(shapes, dict.fromkeys(shapes, "int8"))


@pytest.mark.parametrize(
    ("mark", "task"),
    [("casual_audio_encoder.weights", "s2v-14B"), ("face_adapter.fuser_blocks.0.k_norm.weight", "animate-14B")],
)
def test_transformers_of_tasks_to_come(mark, task):
    assert what_is(manifest("wan_i2v_A14B") | {mark: (1,), "img_emb.proj.0.bias": (1280,)}).task == task
