"""Networks: diffusion transformer, text encoder, VAEs. Written for one device; `wan.pipeline` puts them together."""

from wan.lazy import lazy_names

_NAMES = {
    "WanModel": "wan.modules.model",
    "Wan2_1_VAE": "wan.modules.vae2_1",
    "Wan2_2_VAE": "wan.modules.vae2_2",
    "T5Encoder": "wan.modules.t5",
    "T5EncoderModel": "wan.modules.t5",
    "HuggingfaceTokenizer": "wan.modules.tokenizers",
    "flash_attention": "wan.modules.attention",
}
_ENCODER_ONLY = "does not exist: the released checkpoints hold an encoder alone, T5Encoder"

__all__ = [*_NAMES]
__getattr__, __dir__ = lazy_names(__name__, _NAMES, {"T5Model": _ENCODER_ONLY, "T5Decoder": _ENCODER_ONLY})
