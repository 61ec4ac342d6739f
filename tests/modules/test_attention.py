import importlib.util
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from wan.modules import attention as module
from wan.modules.attention import (
    BACKENDS,
    FLASH_ATTN_2_AVAILABLE,
    FLASH_ATTN_3_AVAILABLE,
    PACKAGES,
    attention,
    check_backend,
    flash_attention,
    resolve_backend,
)


def qkv(batch=2, queries=5, keys=7, heads=2, dim=8, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, queries, heads, dim), (batch, keys, heads, dim), (batch, keys, heads, dim)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def explicit(q, k, v, kv_lens=None):
    """Softmax attention in plain float64 operations."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    for b, n in enumerate(kv_lens or []):
        scores[b, :, :, n:] = -torch.inf
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("kv_lens", [None, (7, 7), (4, 4), (7, 2), (1, 6)])
def test_sdpa_honours_key_lengths(kv_lens):
    q, k, v = qkv()
    torch.testing.assert_close(attention(q, k, v, kv_lens).double(), explicit(q, k, v, kv_lens), atol=1e-5, rtol=1e-5)


def test_padding_keys_change_nothing():
    q, k, v = qkv()
    before = attention(q, k, v, (4, 6))
    k[0, 4:], v[0, 4:], k[1, 6:], v[1, 6:] = 1e3, -1e3, 1e3, -1e3
    assert torch.equal(attention(q, k, v, (4, 6)), before)
    assert not torch.allclose(attention(q, k, v, (5, 6)), before), "a key more must be seen"


def test_lengths_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="3 entries for a batch of 2"):
        attention(*qkv(), (1, 2, 3))


def test_the_old_name_takes_lengths_as_tensors():
    q, k, v = qkv(dtype=torch.bfloat16)
    assert torch.equal(flash_attention(q, k, v, k_lens=torch.tensor([4, 6])), attention(q, k, v, (4, 6)))


def test_the_old_name_computes_in_half_precision_and_gives_the_type_back():
    q, k, v = qkv()
    halves = [x.bfloat16() for x in (q, k, v)]
    assert torch.equal(flash_attention(q, k, v), attention(*halves).float())
    assert flash_attention(q.bfloat16(), k, v).dtype == torch.bfloat16
    exact = flash_attention(q, k, v, dtype=torch.float32)
    assert torch.equal(exact, attention(q, k, v)) and exact.dtype == torch.float32


def test_the_old_name_scales():
    q, k, v = qkv()
    found = flash_attention(q, k, v, softmax_scale=0.7, q_scale=2.0, dtype=torch.float32)
    torch.testing.assert_close(found, attention(q * (1.4 * 8**0.5), k, v))


@pytest.mark.parametrize(
    "causal, window", [(True, (-1, -1)), (False, (2, 1)), (False, (-1, 0)), (True, (1, 5)), (False, (0, -1))]
)
@pytest.mark.parametrize("lens", [(None, None), ((5, 4), (7, 5)), (None, (6, 6))])
def test_the_old_name_limits_what_a_query_sees(causal, window, lens):
    """The last query stands at the last key, as in FlashAttention."""
    q, k, v = (x.double() for x in qkv())
    q_lens, k_lens = (given and torch.tensor(given) for given in lens)
    found = flash_attention(q, k, v, q_lens, k_lens, causal=causal, window_size=window, dtype=torch.float64)
    left, right = window[0], 0 if causal else window[1]
    for b in range(2):
        queries, keys = (lens[0] or (5, 5))[b], (lens[1] or (7, 7))[b]
        for i in range(queries):
            own = i + keys - queries
            seen = [j for j in range(keys) if (left < 0 or j >= own - left) and (right < 0 or j <= own + right)]
            expected = explicit(q[b : b + 1, i : i + 1], k[b : b + 1, seen], v[b : b + 1, seen])
            torch.testing.assert_close(found[b, i], expected[0, 0])


def test_the_old_name_refuses_dropout():
    with pytest.raises(ValueError, match="dropout_p must be 0, got"):
        flash_attention(*qkv(), dropout_p=0.1)


def test_what_is_installed_is_told_under_the_old_names():
    found = FLASH_ATTN_2_AVAILABLE, FLASH_ATTN_3_AVAILABLE
    assert found == tuple(importlib.util.find_spec(PACKAGES[name]) is not None for name in ("flash2", "flash3"))


def test_unknown_and_unusable_backends_are_refused_with_what_works():
    with pytest.raises(ValueError, match="unknown attention backend 'flsh'; choose one of auto, sdpa"):
        check_backend("flsh", "cpu")
    for name in PACKAGES:
        with pytest.raises(ValueError, match="needs a CUDA device, not cpu; use 'auto' or 'sdpa'"):
            check_backend(name, "cpu")
    assert check_backend("auto", "cpu") == "auto"


def test_a_missing_package_names_its_installation(monkeypatch):
    monkeypatch.setattr("wan.modules.attention._installed", lambda name: False)
    with pytest.raises(ValueError, match="pip install sageattention"):
        check_backend("sage", "cuda")


@pytest.mark.parametrize("name", list(PACKAGES))
def test_kernels_for_half_precision_refuse_float32(name, monkeypatch):
    monkeypatch.setattr("wan.modules.attention._installed", lambda name: True)
    assert check_backend(name, "cuda", torch.bfloat16) == name
    with pytest.raises(ValueError, match="half precision only; use --dtype bf16, or 'sdpa'"):
        check_backend(name, "cuda", torch.float32)


def test_auto_stands_for_a_kernel_that_takes_the_operands(monkeypatch):
    monkeypatch.setattr("wan.modules.attention._probe", lambda index, dtype: "flash3")
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert resolve_backend("auto", cuda, half, 128) == "flash3"
    assert resolve_backend("sdpa", cuda, half, 128) == "sdpa", "a named kernel is that kernel"
    for operands in ((cuda, torch.float32, 128), (cuda, half, 384), (torch.device("mps"), half, 128)):
        assert resolve_backend("auto", *operands) == "sdpa"


@pytest.mark.parametrize("name, index", [("cuda", 0), ("cuda:0", 0), ("cuda:3", 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_device_of_the_operands_is_probed(monkeypatch, name, index, dtype):
    probed = []
    monkeypatch.setattr(module, "_probe", lambda *operands: probed.append(operands) or "flash2")
    assert resolve_backend("auto", torch.device(name), dtype, 256) == "flash2"
    assert resolve_backend("auto", torch.device(name), dtype, 257) == "sdpa"
    assert probed == [(index, dtype)]


@pytest.mark.parametrize(
    "installed, broken, expected",
    [
        (("flash2", "flash3"), (), "flash3"),
        (("flash2", "flash3"), ("flash3",), "flash2"),
        (("flash2", "flash3"), ("flash2", "flash3"), "sdpa"),
        (("flash2",), (), "flash2"),
        (("sage",), (), "sdpa"),
    ],
)
def test_a_probe_tries_exact_kernels_on_the_device_itself(monkeypatch, caplog, installed, broken, expected):
    found, tried = probe(monkeypatch, caplog, (8, 6), installed, broken)
    assert found == expected and tried == [*sorted(broken, reverse=True), *({expected} - {"sdpa"})]


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
@pytest.mark.parametrize(
    "installed, broken, expected",
    [
        (("flash2", "flash3"), (), "flash3"),
        (("flash2", "flash3"), ("flash3",), "sdpa_cudnn"),
        (("flash2",), (), "sdpa_cudnn"),
        ((), (), "sdpa_cudnn"),
        (("flash2",), ("sdpa_cudnn",), "flash2"),
    ],
)
def test_where_cudnn_is_fast_it_comes_before_flash_attention_2(
    monkeypatch, caplog, capability, installed, broken, expected
):
    assert probe(monkeypatch, caplog, capability, installed, broken)[0] == expected


def probe(monkeypatch, caplog, capability, installed, broken):
    """Probe a pretended card; return the kernel that is chosen, and those that were tried."""
    tried = []

    def kernel(name, q, k, v, kv_lens):
        tried.append(name)
        assert q.shape == k.shape == v.shape == (1, 16, 1, 128) and q.dtype == torch.bfloat16 and kv_lens is None
        if name in broken:
            raise RuntimeError("no kernel image")

    def zeros(*shape, device, dtype, make=torch.zeros):
        assert device == torch.device("cuda:3")
        return make(shape, dtype=dtype)

    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(module, "_installed", installed.__contains__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for name in BACKENDS:
        monkeypatch.setitem(BACKENDS, name, partial(kernel, name))
    found = module._probe.__wrapped__(3, torch.bfloat16)
    for name in broken:
        assert f"{name} is installed but does not run on cuda:3 (no kernel image); not used" in caplog.text
    return found, tried


@pytest.mark.parametrize("name", ["sdpa", "sdpa_cudnn"])
def test_the_log_names_the_kernel_that_sdpa_chooses_once(caplog, name):
    caplog.set_level("INFO")
    module.log_kernel.cache_clear()
    for _ in range(2):
        module.log_kernel(name, torch.device("cpu"), torch.float32, 64)
    module.log_kernel("flash3", torch.device("cuda:1"), torch.bfloat16, 128)
    assert caplog.messages == ["attention: sdpa, flash attention on cpu", "attention: flash3 on cuda:1"]


def test_sdpa_with_cudnn_first_is_complete():
    q, k, v = qkv(batch=3)
    for kv_lens in (None, (7, 2, 5)):
        torch.testing.assert_close(BACKENDS["sdpa_cudnn"](q, k, v, kv_lens), BACKENDS["sdpa"](q, k, v, kv_lens))


@pytest.mark.parametrize("kv_lens", [None, (7, 2, 5), (4, 4, 4)])
@pytest.mark.parametrize("name", list(PACKAGES))
def test_kernels_without_lengths_see_each_sample_alone(monkeypatch, name, kv_lens):
    """A package stands in for each kernel, with the name, arguments and results of the real one."""

    def kernel(q, k, v, tensor_layout=None):
        assert len({q.shape[0], k.shape[0], v.shape[0]}) == 1 and tensor_layout == ("NHD" if name == "sage" else None)
        out = explicit(q, k, v)
        return (out, "log-sum-exp") if name == "flash3" else out

    function = "sageattn" if name == "sage" else "flash_attn_func"
    monkeypatch.setitem(sys.modules, PACKAGES[name], SimpleNamespace(**{function: kernel}))
    q, k, v = qkv(batch=3)
    expected = explicit(q, k, v, kv_lens)
    torch.testing.assert_close(attention(q, k, v, kv_lens, backend=name), expected)
    assert PACKAGES == {"flash2": "flash_attn", "flash3": "flash_attn_interface", "sage": "sageattention"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(PACKAGES))
@pytest.mark.parametrize("kv_lens", [None, (60, 33)])
def test_optional_kernels_agree_with_sdpa(name, kv_lens):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip(PACKAGES[name])
    q, k, v = qkv(2, 64, 64, 4, 128, torch.bfloat16, "cuda")
    out, reference = (BACKENDS[n](q, k, v, kv_lens).float() for n in (name, "sdpa"))
    assert F.mse_loss(out, reference).sqrt() < (0.02 if name == "sage" else 0.005)
