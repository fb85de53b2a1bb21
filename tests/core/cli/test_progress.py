"""What is printed on stderr while a command computes."""

from core.cli.progress import Progress


def test_warnings_are_printed_and_other_results_are_not(capsys):
    with Progress() as progress:
        progress.stage("generation", 2)
        progress.pause_point()
        progress.result("full_precision", {"top1": 92.5})
        progress.result("warning/kernels", "the images by Adam will differ")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "warning: the images by Adam will differ"
    assert "92.5" not in "".join(lines)
