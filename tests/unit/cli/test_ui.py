"""What the user sees: where it goes, how it looks on a terminal and elsewhere, and what text from outside cannot do."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.ui import QUIET, VERBOSE, Ui, ago, printable
from tests.unit.cli.fakes import Stream


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(terminal: bool = False, level: int = 0, **environ: str) -> tuple[Ui, Stream, Stream, Clock]:
    out, err, clock = Stream(terminal), Stream(terminal), Clock()
    return Ui(out, err, level=level, environ=environ, clock=clock), out, err, clock


def test_an_error_is_one_line_and_a_hint_on_stderr() -> None:
    ui, out, err, _ = made()
    ui.error("no container is called 'shp'", "did you mean docker/shop?")
    assert err.getvalue() == "mbridge: error: no container is called 'shp'\nmbridge: hint: did you mean docker/shop?\n"
    assert out.getvalue() == ""


def test_colours_are_for_terminals_and_no_color_takes_them_away() -> None:
    coloured, _, seen, _ = made(terminal=True)
    coloured.error("x")
    assert "\x1b[31;1merror:\x1b[0m" in seen.getvalue()
    for plain, _, err, _ in (made(terminal=True, NO_COLOR="1"), made(terminal=True, TERM="dumb"), made()):
        plain.error("x")
        assert err.getvalue() == "mbridge: error: x\n"


def test_a_step_is_one_plain_line_with_its_time_where_no_terminal_is() -> None:
    ui, _, err, clock = made()
    with ui.step("agent") as step:
        step.now("creating")
        clock.now += 0.314
        step.done("mbridge-kqzwtb-agent")
    assert err.getvalue() == "mbridge: agent: mbridge-kqzwtb-agent (0.31 s)\n"


def test_a_step_on_a_terminal_is_alive_and_ends_as_one_line() -> None:
    ui, _, err, clock = made(terminal=True)
    with ui.step("agent") as step:
        step.now("creating")
        clock.now += 2
        step.done("there")
    *_, last = err.getvalue().split("\x1b[2K")
    assert "creating" in err.getvalue()
    assert last.startswith("\x1b[32m✓\x1b[0m agent")
    assert last.endswith("2.00 s\x1b[0m\n")


def test_a_step_that_fails_leaves_no_line_of_success() -> None:
    ui, _, err, _ = made()
    with pytest.raises(ValueError), ui.step("agent"):  # noqa: PT011  any exception of a step's body
        raise ValueError
    assert err.getvalue() == ""


def test_a_warning_during_a_live_step_stands_above_it() -> None:
    ui, _, err, _ = made(terminal=True, NO_COLOR="1")
    with ui.step("agent") as step:
        step.now("creating")
        ui.warn("slow")
    assert "\r\x1b[2Kmbridge: warning: slow\n" in err.getvalue()


def test_of_two_steps_at_once_the_other_stays_in_sight_when_one_ends() -> None:
    ui, _, err, _ = made(terminal=True, NO_COLOR="1")
    with ui.step("network") as network:
        network.now("pause")
        with ui.step("agent") as agent:
            agent.now("creating")
        assert err.getvalue().rpartition("\x1b[2K")[2].endswith(" network  pause")


def test_quiet_leaves_errors_and_warnings() -> None:
    ui, _, err, _ = made(level=QUIET)
    ui.note("a")
    with ui.step("b"):
        pass
    ui.warn("c")
    ui.error("d")
    assert err.getvalue() == "mbridge: warning: c\nmbridge: error: d\n"


def test_verbose_tells_what_a_step_is_doing() -> None:
    ui, _, err, _ = made(level=VERBOSE)
    with ui.step("agent") as step:
        step.now("creating")
    assert "mbridge: agent: creating\n" in err.getvalue()


def test_lines_end_with_a_carriage_return_while_the_terminal_is_raw() -> None:
    ui, _, err, _ = made(terminal=True, NO_COLOR="1")
    ui.raw = True
    ui.warn("reconnecting")
    assert err.getvalue() == "mbridge: warning: reconnecting\r\n"


def test_lines_of_one_app_among_several_carry_its_name() -> None:
    ui, _, err, _ = made()
    ui.prefixed("orders").warn("x")
    assert err.getvalue() == "mbridge: warning: orders: x\n"


def test_further_lines_of_a_message_are_indented() -> None:
    ui, _, err, _ = made()
    ui.error("the agent ended", "its last words:\nno such file\x1b[2J")
    assert err.getvalue() == "mbridge: error: the agent ended\nmbridge: hint: its last words:\n  no such file\\x1b[2J\n"


def test_a_warning_that_is_logged_meanwhile_is_told_in_our_form() -> None:
    ui, _, err, _ = made()
    with ui.passing_on_warnings():
        logging.getLogger("bridge.cli.somewhere").warning("taking the container's %s", "own\x1b")
        logging.getLogger("bridge.cli.somewhere").info("not this")
    logging.getLogger("bridge.cli.somewhere").warning("nor this")
    assert err.getvalue() == "mbridge: warning: taking the container's own\\x1b\n"


@given(st.text())
def test_no_text_from_outside_moves_the_cursor(text: str) -> None:
    shown = printable(text)
    assert all(char == "\t" or char >= " " for char in shown)
    assert not set(shown) & set("\x7f\x9b\u202e\u2066\u2028")
    shown.encode()  # lone surrogates are escaped too


def test_a_table_is_aligned_and_escaped_and_no_wider_than_its_cells() -> None:
    ui, out, _, _ = made()
    ui.table(("NAME", "STATE"), [("web", "up"), ("a\x07b", "down")], empty="none")
    assert out.getvalue() == "NAME    STATE\nweb     up\na\\x07b  down\n"


def test_a_table_counts_columns_of_a_terminal_and_not_letters() -> None:
    ui, _, _, _ = made()
    assert ui.laid_out(("A", "B"), [["日本", "x"]]).splitlines()[1] == "日本  x"
    assert ui.laid_out(("A", "B"), [["日本", "x"]]).splitlines()[0] == "A     B"


def test_an_empty_table_says_so_on_stderr_and_prints_nothing() -> None:
    ui, out, err, _ = made()
    ui.table(("A",), [], empty="nothing there")
    assert (out.getvalue(), err.getvalue()) == ("", "mbridge: nothing there\n")


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0s"), (59.9, "59s"), (190, "3m 10s"), (7500, "2h 05m"), (270000, "3d 3h")])
def test_a_span_is_said_in_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert ago(seconds) == text


@pytest.mark.parametrize("char", "\x1b\x7f\x9b\u202e\u2066\u200f\u2028\ud800")
def test_no_character_of_a_name_turns_the_line_around(char: str) -> None:
    escaped = f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"
    assert printable(f"a{char}b") == f"a{escaped}b"
