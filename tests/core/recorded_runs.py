"""What a run reports, and a control that stops it, for tests."""

import json

from core.errors import RunStopped
from core.reporting import NoControl, NullReporter


class Recorder(NullReporter):
    """Records everything that is reported."""

    def __init__(self):
        self.stages, self.records, self.results, self.pictures = [], [], {}, []

    def stage(self, name, total, done=0):
        self.stages.append((name, total))

    def record(self, stage, method, step, values):
        self.records.append((stage, method, step, dict(values)))

    def images(self, method, frame, keep):
        self.pictures.append((method, frame, keep))

    def running_statistics(self, statistics):
        self.statistics = statistics

    def result(self, name, value):
        json.dumps(value)
        self.results[name] = value


class StopsAt(NoControl):
    """Stops the run at the pause point after `count` others."""

    def __init__(self, count):
        self.left = count

    def pause_point(self):
        self.left -= 1
        if self.left < 0:
            raise RunStopped("enough")
