"""The methods that make images: one row each. Imports no torch, so that a config, a form or a help text can read it.

To add a method: one file in core/generation/sources/ with its ImageSource, a row here, and its own knobs in core/config/generation.py,
each with `of=("its-name",)`. With `own_loss`, also the settings of its authors' code in core/config/presets.py.
"""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from core.errors import UnknownNameError


@dataclass(frozen=True)
class Method:
    """A way to make images from a network alone.

    name: in configs, files and on the command line. title: on the pages. paper, year: where it was published.
    kind: "pixels" moves the pixels of noise images, or what each batch is made from; "generator" trains a generator and samples from it,
    or, under its authors' protocol, trains it further together with the student; "joint" does so under every protocol; "reference" has
    images that nothing optimizes, which those of methods are compared with. source: its ImageSource, as "module:Class" so that
    torch is not imported here, or the class. own_loss: whether it has a loss of its own in place of L_total, so that it has none of the
    knobs of L_TOTAL. student: of a method of kind "pixels" whose authors have a loss of the student, its AuthorsImages, as `source`.
    """

    name: str
    title: str
    source: Any
    kind: str = "pixels"
    paper: str = ""
    year: int = 0
    own_loss: bool = False
    student: Any = None

    @property
    def has_generator(self) -> bool:
        """Whether a generator makes the images."""
        return self.kind in ("generator", "joint")

    @property
    def is_reference(self) -> bool:
        """Whether its images are there for comparison, and nothing optimizes them."""
        return self.kind == "reference"

    @property
    def has_protocols(self) -> bool:
        """Whether its authors' protocol differs from the shared one."""
        return self.has_generator or self.student is not None

    def is_joint(self, protocol: str) -> bool:
        """Whether the generator learns together with the student under `protocol`, "shared" or "authors"."""
        return self.kind == "joint" or (self.kind == "generator" and protocol == "authors")


L_TOTAL = "L_total"  # in `of` of a knob: all methods with this loss
_GDFQ = "Xu et al., Generative Low-bitwidth Data Free Quantization, ECCV 2020"
_QIMERA = "Choi et al., Qimera: Data-free Quantization with Synthetic Boundary Supporting Samples, NeurIPS 2021"
_ZAQ = "Liu et al., Zero-shot Adversarial Quantization, CVPR 2021"
_DFFG = "Leng et al., Fast Gradient Iteration for Data-free Quantization, BMVC 2023"
_ZEROQ = "Cai et al., ZeroQ: A Novel Zero Shot Quantization Framework, CVPR 2020"
_DSG = "Zhang et al., Diversifying Sample Generation for Accurate Data-Free Quantization, CVPR 2021"
_INTRAQ = "Zhong et al., IntraQ: Learning Synthetic Images with Intra-Class Heterogeneity for Zero-Shot Network Quantization, CVPR 2022"
_HAST = "Li et al., Hard Sample Matters a Lot in Zero-Shot Quantization, CVPR 2023"
_ADASG = "Qian et al., Rethinking Data-Free Quantization as a Zero-Sum Game, AAAI 2023"
_ADADFQ = "Qian et al., Adaptive Data-Free Quantization, CVPR 2023"
_GENIE = "Jeon et al., GENIE: Show Me the Data for Quantization, CVPR 2023"
_PLF = "Fan et al., Data-Free Quantization via Pseudo-label Filtering, CVPR 2024"
_SYNQ = "Kim et al., SynQ: Accurate Zero-shot Quantization by Synthesis-aware Fine-tuning, ICLR 2025"
_TEXQ = "Chen et al., TexQ: Zero-shot Network Quantization with Texture Feature Distribution Calibration, NeurIPS 2023"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("mi-fgsm", "MI-FGSM", "core.generation.sources.pixels:SignedMomentumImages", paper=_DFFG, year=2023),
        Method("adam", "Adam", "core.generation.sources.pixels:AdamImages", paper=f"{_DFFG} (baseline)", year=2023),
        Method("zeroq", "ZeroQ", "core.generation.sources.zeroq:ZeroQImages", paper=_ZEROQ, year=2020, own_loss=True),
        Method("dsg", "DSG", "core.generation.sources.dsg:DSGImages", paper=_DSG, year=2021, own_loss=True),
        Method(
            "intraq",
            "IntraQ",
            "core.generation.sources.intraq:IntraQImages",
            paper=_INTRAQ,
            year=2022,
            own_loss=True,
            student="core.quantization.authors.intraq:IntraQStudent",
        ),
        Method("gdfq", "GDFQ", "core.generation.sources.gdfq:GDFQ", "generator", _GDFQ, 2020, own_loss=True),
        Method("qimera", "Qimera", "core.generation.sources.qimera:Qimera", "generator", _QIMERA, 2021, own_loss=True),
        Method("zaq", "ZAQ", "core.generation.sources.zaq:ZAQ", "joint", _ZAQ, 2021, own_loss=True),
        Method("dsg-g", "DSG (generator)", "core.generation.sources.dsg_generator:DSGGenerator", "generator", _DSG, 2021, own_loss=True),
        Method("adadfq", "AdaDFQ", "core.generation.sources.adadfq:AdaDFQ", "joint", _ADADFQ, 2023, own_loss=True),
        Method("adasg", "AdaSG", "core.generation.sources.adadfq:AdaSG", "joint", _ADASG, 2023, own_loss=True),
        Method(
            "hast",
            "HAST",
            "core.generation.sources.hast:HASTImages",
            paper=_HAST,
            year=2023,
            own_loss=True,
            student="core.quantization.authors.hast:HASTStudent",
        ),
        Method("texq", "TexQ", "core.generation.sources.texq:TexQ", "generator", _TEXQ, 2023, own_loss=True),
        Method(
            "synq",
            "SynQ",
            "core.generation.sources.synq:SynQImages",
            paper=_SYNQ,
            year=2025,
            own_loss=True,
            student="core.quantization.authors.synq:SynQStudent",
        ),
        Method("genie", "Genie", "core.generation.sources.genie:GenieImages", paper=_GENIE, year=2023, own_loss=True),
        Method(
            "plf",
            "PLF",
            "core.generation.sources.plf:PLFImages",
            paper=_PLF,
            year=2024,
            own_loss=True,
            student="core.quantization.authors.plf:PLFStudent",
        ),
        Method("noise", "Noise (reference)", "core.generation.sources.references:NoiseImages", "reference", own_loss=True),
        Method("real", "Real images (reference)", "core.generation.sources.references:RealImages", "reference", own_loss=True),
    )
}
DEFAULT_METHODS = ("mi-fgsm", "adam")


def counts_epochs(names: Iterable[str]) -> bool:
    """Whether all of these methods train a generator, so that a run of them has epochs instead of batches."""
    return all(name in METHODS and METHODS[name].has_generator for name in names)


def is_reference(name: str) -> bool:
    """Whether the images of this name are a reference; not those of names without a row, which were given."""
    return name in METHODS and METHODS[name].is_reference


def method_order(name: str) -> int:
    """Position of a method in lists: that of its row; other names come after all rows."""
    return list(METHODS).index(name) if name in METHODS else len(METHODS)


def in_order(names: Iterable[str]) -> list[str]:
    """The names sorted by `method_order`, then alphabetically."""
    return sorted(names, key=lambda name: (method_order(name), name))


def load_source(name: str) -> Any:
    """The ImageSource class of a method. Raises UnknownNameError."""
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    source = METHODS[name].source
    if isinstance(source, str):
        module, _, class_name = source.partition(":")
        return getattr(importlib.import_module(module), class_name)
    return source
