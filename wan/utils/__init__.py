"""Flow matching and its solvers, and upstream's helper functions in `wan.utils.utils`."""

from wan.lazy import lazy_names

_NAMES = {
    "FlowEulerScheduler": "wan.utils.flow",
    "FlowDPMSolverMultistepScheduler": "wan.utils.fm_solvers",
    "FlowUniPCMultistepScheduler": "wan.utils.fm_solvers_unipc",
    "get_sampling_sigmas": "wan.utils.fm_solvers",
    "retrieve_timesteps": "wan.utils.fm_solvers",
}

__all__ = [*_NAMES]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
