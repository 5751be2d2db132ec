import io
import json
import logging
from types import SimpleNamespace

import pytest

from rest_pg import progress
from rest_pg.logs import JsonFormatter, LogHook
from rest_pg.progress import Audience, listening, track, tracked, whole


@pytest.fixture
def heard():
    told: list[tuple[str, int, int]] = []
    with listening(lambda *event: told.append(event)):
        yield told


def test_portions_are_counted_in_one_whole(heard) -> None:
    with whole("sampling", 10, "sample", done=4) as bar:
        for _ in range(2):
            portion = track("sampling", 3, "sample")
            portion.count_tokens(5)
            portion.update(2)
            portion.close()
            bar.update()
    assert heard == [
        ("sampling", 4, 5),
        ("sampling", 6, 5),
        ("sampling", 7, 5),
        ("sampling", 7, 10),
        ("sampling", 9, 10),
        ("sampling", 10, 10),
    ]
    assert track("sampling", 3, "sample").done == 0  # the whole has ended


def test_a_failure_ends_the_whole(heard) -> None:
    def fail() -> None:
        with whole("sampling", 2, "sample"):
            track("sampling", 2, "sample").update()
            raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        fail()
    assert list(tracked("ab", "sampling", "sample")) == ["a", "b"]
    assert heard[-1] == ("sampling", 2, 0)


def test_nothing_is_drawn_where_nobody_looks(capfd) -> None:
    for _ in tracked("abc", "scoring", "sample"):
        pass
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def log():
    """The log for machines, as a stream."""
    stream, hook = io.StringIO(), LogHook()
    handler = logging.StreamHandler(stream)
    logging.root.addHandler(handler)
    logging.getLogger("rest_pg").setLevel(logging.INFO)
    hook.speak("json")
    yield stream
    hook.speak("text")
    logging.root.removeHandler(handler)
    logging.getLogger("rest_pg").setLevel(logging.NOTSET)


def test_every_line_is_an_object_with_what_the_event_says(log, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = track("sampling", 40, "sample", done=20)
    now[0] = 4
    bar.update()  # too early to be told
    now[0] = 10
    bar.count_tokens(50)
    bar.update(4)
    logging.getLogger("rest_pg.x").warning("a line\nand another: %s", "ü")
    try:
        raise ValueError("no disk")
    except ValueError:
        logging.getLogger("rest_pg.x").exception("failed")
    event, warning, error = map(json.loads, log.getvalue().splitlines())
    # 1 of 20 in 10 seconds: 19 times as long for the others
    assert event["seconds_left"] == 190
    assert {k: event[k] for k in ("task", "done", "total", "tokens_per_second")} == {
        "task": "sampling",
        "done": 21,
        "total": 40,
        "tokens_per_second": 5,
    }
    assert (warning["level"], warning["message"]) == ("WARNING", "a line\nand another: ü")
    assert error["error"].endswith("ValueError: no disk")


def test_text_follows_json_in_one_process() -> None:
    handler = logging.StreamHandler(io.StringIO())
    logging.root.addHandler(handler)
    hook, plain = LogHook(), handler.formatter
    hook.speak("json")
    assert Audience.machine
    assert isinstance(handler.formatter, JsonFormatter)
    hook.speak("text")
    assert not Audience.machine
    assert handler.formatter is plain
    logging.root.removeHandler(handler)


def test_an_unknown_format_is_refused() -> None:
    context = SimpleNamespace(config_loader={"parameters": {"log": "xml"}})
    with pytest.raises(ValueError, match="log='xml' is not one of text, json"):
        LogHook().after_context_created(context)
