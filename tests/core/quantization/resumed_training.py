"""A training together with a generator, interrupted and resumed."""

import torch


def check_resumed(made, steps, file):
    """Student and generator of a training that is stopped after some steps and resumed from a file end with the same bits.

    made: returns a fresh training, the same each time.
    """
    whole, begun, resumed = made(), made(), made()
    for _ in range(steps):
        begun.step()
    torch.save(begun.state(), file)
    resumed.load_state(torch.load(file, weights_only=True))
    for training in (whole, resumed):
        while not training.finished:
            training.step()
    for name, value in resumed.student.state_dict().items():
        assert torch.equal(value, whole.student.state_dict()[name]), name
    for ours, theirs in zip(resumed.source.parameters(), whole.source.parameters()):
        assert torch.equal(ours, theirs)
