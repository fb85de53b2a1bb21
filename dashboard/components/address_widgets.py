"""Widgets whose value is a parameter of the page's address, so that views can read it and a copied link shows the same.

The address holds names and ids. A filter that only its own page reads uses Streamlit's `bind="query-params"`, which stores labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard import session


def named_option(address: Mapping[str, str], parameter: str, options: Iterable[str]) -> str:
    """The option that an address names, or the first one."""
    names = list(options)
    return address.get(parameter, "") if address.get(parameter) in names else names[0]


def choose_one(label: str, options: Mapping[str, str], parameter: str, **rest: Any) -> str:
    """One of the options (name -> label) as a row of buttons; the first unless the address names another."""
    chosen = named_option(st.query_params.to_dict(), parameter, options)
    st.segmented_control(
        label,
        list(options),
        default=chosen,
        required=True,
        format_func=lambda name: options[name],
        key=parameter,
        on_change=lambda: session.put_into_address(parameter, st.session_state[parameter]),
        **rest,
    )
    return chosen


def choose_from_box(label: str, options: Mapping[str, str], parameter: str, **rest: Any) -> str:
    """One of the options (name -> label) in a selection box; the first unless the address names another. rest: of st.selectbox."""
    chosen = named_option(st.query_params.to_dict(), parameter, options)
    key = f"{parameter}/{chosen}"  # a key for each option, so that the box follows the address, and a first option that changes
    st.selectbox(
        label,
        list(options),
        index=list(options).index(chosen),
        format_func=lambda name: options[name],
        key=key,
        on_change=lambda: session.put_into_address(parameter, st.session_state[key]),
        **rest,
    )
    return chosen


def choose_several(
    label: str,
    options: Sequence[str],
    parameter: str,
    key: str,
    format_func: Callable[[str], str],
    default: Sequence[str] = (),
    **rest: Any,
) -> list[str]:
    """Some of the options; `default` if the address has no such parameter. rest: of st.multiselect."""
    wanted = st.query_params.get(parameter)
    named = default if wanted is None else wanted.split(",")
    # earlier choices may no longer be options, for example deleted runs
    chosen = [name for name in dict.fromkeys(st.session_state.get(key, named)) if name in options]
    st.session_state[key] = chosen[: rest.get("max_selections")]
    return st.multiselect(
        label,
        options,
        key=key,
        format_func=format_func,
        on_change=lambda: put_several(parameter, st.session_state[key], default),
        **rest,
    )


def put_several(parameter: str, names: Sequence[str], default: Sequence[str] = ()) -> None:
    """Puts chosen names into the address; removes the parameter if they are the default."""
    session.put_into_address(parameter, None if list(names) == list(default) else ",".join(names))
