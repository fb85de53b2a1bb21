"""What the networks and images of a run are measured on."""

from dataclasses import dataclass

from core.config.choices import AUTO_DATA
from core.config.knobs import Checked, knob

MOST_ACCURACY_CHECKS = 100


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """Evaluation images, accuracy checks during training, and the CLIP encoder for diversity."""

    data: str = knob(
        AUTO_DATA,
        "Evaluation images: none (no accuracy; instead, how closely the quantized network follows the full-precision one on held-out "
        "synthetic images); embedded (2,000 of the CIFAR-10 test set); auto (embedded for a network with the classes of CIFAR-10 by name, "
        "otherwise none); cifar10 or cifar100 (downloaded by torchvision); or a folder or zip file of images, with one folder per class "
        "(named after the class, its number or its WordNet ID) or without labels, or ImageNet or CIFAR as torchvision stores them.",
        label="Evaluation images",
        paper="CIFAR-10, CIFAR-100 and ImageNet",
        affects_result=False,
    )
    strict: bool = knob(
        False,
        "Stop at the first image file that cannot be read, instead of skipping up to 1 % of them.",
        low="damaged images are skipped, counted and named.",
        high="one damaged image ends the run.",
        in_form=False,
        affects_result=False,
    )
    accuracy_checks: int = knob(
        4,  # of 500 images each: 3 % of the training time of `quick`, 5 % of its shortest training
        "How often accuracy is measured during training, evenly spaced, on at most 500 evaluation images. Nothing is chosen on it: the "
        "reported accuracy is that of the last step on all of them.",
        minimum=0,
        maximum=MOST_ACCURACY_CHECKS,
        label="Accuracy checks during training",
        low="0 measures only at the end: no curve.",
        high="training waits for each check.",
        affects_result=False,
        old_names=("evaluations",),
    )
    encoder: str = knob(
        "embedded",
        "CLIP encoder for diversity: embedded, which needs no network; or ARCH:PRETRAINED as open_clip lists them, such as "
        "ViT-B-32:laion2b_s34b_b79k, downloaded on first use; or ARCH:FILE with a file of weights. Empty: diversity is not measured.",
        label="CLIP encoder for diversity",
        affects_result=False,
    )

    def check_steps(self, steps: int) -> tuple[int, ...]:
        """The steps of a training, counted from 1, after which accuracy is checked: evenly spaced, without the last, which always is."""
        intervals = self.accuracy_checks + 1
        return tuple(sorted({round(steps * i / intervals) for i in range(1, intervals)} - {0, steps}))
