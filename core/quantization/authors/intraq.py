"""IntraQ (Zhong et al., CVPR 2022): cross entropy to the labels and distillation, L_Q = L_CE + 20 L_KD with T = 20 and KL averaged over
images. Learning rates fall to a tenth at epochs 20, 40 and 60.
"""

from dataclasses import replace

from core.config import TrainingConfig
from core.quantization.authors.base import AuthorsImages


class IntraQStudent(AuthorsImages):
    """Training on images of IntraQ as by its authors."""

    def authors_training(self, training: TrainingConfig) -> TrainingConfig:
        return replace(training, alpha_ce=1.0, alpha_kd=20.0, temperature=20.0, alpha_feature=0.0)
