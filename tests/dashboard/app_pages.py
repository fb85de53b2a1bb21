"""Opens pages in Streamlit's AppTest and reads what they show."""

import json
from pathlib import Path

import pandas as pd
from streamlit.testing.v1 import AppTest

from core.config import EvaluationConfig, GenerationConfig, MachineConfig, RunConfig
from dashboard import session

ROOT = Path(__file__).parents[2]
SHORT = RunConfig(
    machine=MachineConfig(device="cpu"),
    generation=GenerationConfig(images=20, iterations=3, batch_size=20, snapshots=1),
    bits=(),
    evaluation=EvaluationConfig(encoder=""),
)


def page(name, *opened, **address):
    """A page at an address, with these expanders open; closed ones draw no content."""
    app = AppTest.from_file(str(ROOT / "dashboard" / "pages" / f"{name}.py"), default_timeout=60)
    for expander in opened:
        app.session_state[expander] = True
    for parameter, value in address.items():
        app.query_params[parameter] = str(value)
    app.run()
    assert not app.exception, app.exception
    return app


def texts(app):
    """All text of the page as displayed, without Markdown's backslashes."""
    shown = [element.value for kind in (app.markdown, app.caption, app.info, app.error) for element in kind]
    lines = [line for block in component(app, "text_block") for line in (block["title"], *block["lines"])]
    return " ".join([*shown, *htmls(app), *lines]).replace("\\", "")


def htmls(app):
    return [element.proto.body for element in app.get("html")]


def components(app):
    """Name and data of each of the dashboard's own components, in order."""
    found = [element.proto for element in app.get("bidi_component")]
    return [(proto.component_name.removeprefix("dashboard."), json.loads(proto.json)) for proto in found]


def tables(app):
    """The values of each table of the page that is only read, as data frames whose columns are those of its rows."""
    found = []
    for data in component(app, "table"):
        cells = [[cell["value"] if isinstance(cell, dict) else cell for cell in row["cells"]] for row in data["rows"]]
        found.append(pd.DataFrame(cells, columns=[column["name"] for column in data["columns"]]))
    return found


def component(app, name):
    return [data for other, data in components(app) if other == name]


def quantized_at_8_bits(form):
    """The run that this form on Quantize starts on existing images, without training."""
    app = page("quantize", form)
    app.multiselect(key="quick/bits").set_value([8])
    app.number_input(key="quick/steps").set_value(0)
    app.button(key="quantize").click().run()
    assert not app.exception
    return session.store().runs()[0]
