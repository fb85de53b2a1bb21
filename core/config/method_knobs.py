"""Knobs that several methods have, each under a name of its own."""

from core.config.knobs import knob


def step_size(title: str, method: str, default: float, paper: float = 0.0) -> float:
    """The knob of a method that has an Adam of its own. paper: the authors' value, unless it is the default."""
    own: float = knob(
        default,
        f"Step size of {title} (Adam) in normalized units.",
        minimum=0.0,
        maximum=2.0,
        label=f"{title} step size",
        symbol="lr",
        paper=f"{paper or default:g}",
        step=0.01,
        live=True,
        slider=(0.0, 1.0),
        of=(method,),
        low="images barely change in the given iterations.",
        high="images overshoot and the loss oscillates.",
    )
    return own


def weight(default: float, term: str, method: str, symbol: str, low: str, high: str) -> float:
    """The knob that weighs a term of a method's own loss. term: what the weight is of. symbol: of the term, with the name of the method."""
    own: float = knob(
        default,
        f"Weight of {term}.",
        minimum=0.0,
        maximum=100.0,
        label=f"Weight of {symbol}",
        paper=f"{default:g}",
        step=default / 10,
        live=True,
        slider=(default / 100, 100 * default if default < 0.1 else 10 * default),
        log=True,
        of=(method,),
        low=low,
        high=high,
    )
    return own
