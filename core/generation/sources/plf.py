"""PLF (Fan et al., CVPR 2024): the images of HAST with the plain cross entropy, L = L_stat + beta CE.

No code was published. beta = 10 is the paper's for CIFAR; for ImageNet it has 0.1.
"""

from core.generation.sources.hast import HASTImages


class PLFImages(HASTImages):
    """Adam on the statistics of the batch and the cross entropy."""

    step_knob = "plf_lr"
    beta_knob = "plf_beta"
    gamma_knob = ""
