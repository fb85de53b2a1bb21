"""SynQ (Kim et al., ICLR 2025): the images of HAST, L = L_stat + beta mean over images of (1 - p_y)^gamma CE.

beta = 0.1 and gamma = 0.5 are those of the authors' scripts, for ImageNet and for CIFAR-100; they published none for CIFAR-10. The optional
centers of their code are left out.
"""

from core.generation.sources.hast import HASTImages


class SynQImages(HASTImages):
    """Adam on the statistics of the batch and a focal cross entropy."""

    step_knob = "synq_lr"
    beta_knob = "synq_beta"
    gamma_knob = "synq_gamma"
