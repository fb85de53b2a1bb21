"""Where and with which seed a run is computed: the same for all of its stages."""

from dataclasses import dataclass

from core.config.choices import DEVICES
from core.config.knobs import Checked, knob

ANY_SEED = "No seed is better than another; accuracies of two seeds differ by some tenths of a point."


@dataclass(frozen=True)
class MachineConfig(Checked):
    """Seed, threads and device of a whole run."""

    seed: int = knob(
        0,
        "Seed of noise, shifts, flips, and of the order of images in training. Same config and seed give the same bits on one machine.",
        minimum=0,
        maximum=2**31 - 1,
        low=ANY_SEED,
        high=ANY_SEED,
    )
    device: str = knob("auto", "Where to compute; auto uses CUDA, else MPS, else the CPU.", choices=DEVICES, affects_result=False)
    threads: int = knob(
        0,
        "CPU threads; 0 lets torch choose.",
        minimum=0,
        maximum=1024,
        label="CPU threads",
        low="1 leaves cores idle.",
        high="more threads than cores slow each other down.",
        affects_result=False,
    )
    gpu_share: float = knob(
        1.0,
        "On a Ray cluster, the share of a GPU that a run takes: with 0.5, two runs share one. Ray counts shares and limits no memory.",
        minimum=0.01,
        maximum=1.0,
        label="Share of a GPU",
        low="more runs share a GPU: each is slower, and their memory must fit together.",
        high="a small network leaves most of a GPU idle.",
        in_form=False,
        affects_result=False,
    )
    budget: float = knob(
        0.0,
        "Minutes that the run may take. The speed of a few steps on this machine then decides how many images, iterations and training "
        "steps there are, and the settings given are what they are scaled from. 0: as many as given.",
        minimum=0.0,
        maximum=10_080.0,
        label="Time (minutes)",
        step=1.0,
        low="less accurate; the least possible takes a minute or two for a small network.",
        high="more accurate, with diminishing gains.",
        affects_result=False,
    )
    compile: bool = knob(
        False,
        "On a GPU, compile the step with torch.compile before it is captured: takes about half a minute, which only long runs win back. "
        "Falls back to eager mode if compilation fails. On a CPU, kernels are always compiled with the C compiler, within a second.",
        label="Compile on a GPU",
        low="starts at once; each step takes longer.",
        high="short runs lose more to compilation than they gain.",
        affects_result=False,
    )
