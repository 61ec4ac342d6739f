"""Names that a user can choose from. They stand here, because the files that implement them import torch."""

# Solver -> its class in `wan.utils`.
SOLVERS = {
    "unipc": "FlowUniPCMultistepScheduler",
    "dpm++": "FlowDPMSolverMultistepScheduler",
    "euler": "FlowEulerScheduler",
}
ATTENTION = ("auto", "sdpa", "flash2", "flash3", "sage")  # kernels of `wan.modules.attention`
OFFLOAD = ("none", "model", "block", "auto")  # policies of `wan.runtime.Offload`
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}  # PyTorch's names are accepted as well
HUBS = ("huggingface", "modelscope")  # where checkpoints are published
VAE_FRAMES = (1, 2, 4)  # that a VAE computes together at high resolutions
VAE_DTYPES = {"fp32": "float32", "fp16": "float16"}  # of its convolutions
QUANTIZED = {"int8": "int8", "fp8": "float8_e4m3fn"}  # types of weights in 8 bits
MIN_VAE_TILE = 64  # pixels; the margins around smaller ones are most of the work
NOISE_DEVICES = ("default", "cpu")
POSE_BACKENDS = ("auto", "onnx", "mediapipe")  # what finds people in a driving video
# Fields of a request for weights that are distilled to few steps without guidance. The high-noise expert makes the
# first two steps.
PRESETS = {
    "4-step": {"sigmas": (1.0, 0.9375, 5 / 6, 0.625), "solver": "euler", "guidance": (1.0, 1.0), "boundary": 0.9},
}
PROGRESS = ("bar", "plain", "none")
