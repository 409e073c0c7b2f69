"""Several lanes as one: where they meet, what fails, who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from torch import Tensor

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")

from streamlearn.compute.cuda import StreamLane  # noqa: E402
from streamlearn.compute.devices import Lanes, open_lane  # noqa: E402
from streamlearn.errors import ConfigError  # noqa: E402

COUNT = 3

Work = Callable[[Mapping[str, "Tensor"]], Mapping[str, "Tensor"]]


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    one = Lanes([StreamLane("cpu") for _ in range(COUNT)])
    yield one
    one.close()


def parts(work: Callable[[int], Work], size: int = 2) -> list[tuple[dict[str, Any], Work]]:
    return [({"x": np.full(size, i, np.float32)}, work(i)) for i in range(COUNT)]


def test_each_lane_does_its_part(lanes: Lanes) -> None:
    names: dict[int, str] = {}

    def work(number: int) -> Work:
        def double(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            names[number] = str(threading.get_ident())
            return {"y": given["x"] * 2}

        return double

    results = lanes.submit_all(parts(work)).result()
    assert [one["y"].tolist() for one in results] == [[0, 0], [2, 2], [4, 4]]
    assert len(set(names.values())) == COUNT


@pytest.mark.parametrize("depth", [1, 2])
def test_a_join_stands_between_all_parts_before_and_after_it(depth: int) -> None:
    lanes = Lanes([StreamLane("cpu", depth=depth) for _ in range(COUNT)])
    seen: list[tuple[str, int]] = []

    def step(number: int) -> Any:
        def work(_: int) -> Work:
            def note(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
                seen.append(("part", number))
                return {}

            return note

        return lanes.submit_all(parts(work), lambda: seen.append(("join", number)))

    for one in [step(number) for number in range(40)]:
        one.result()
    expected = [
        event for number in range(40) for event in [("part", number)] * COUNT + [("join", number)]
    ]
    assert seen == expected
    lanes.close()


def test_without_a_join_nobody_waits(lanes: Lanes) -> None:
    met = threading.Barrier(2, timeout=60)

    def work(number: int) -> Work:
        def wait(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            # the second part of the first submission meets the first part of the second one
            if (int(given["x"][0]), number) in {(1, 1), (10, 0)}:
                met.wait()
            return {}

        return wait

    first = lanes.submit_all(parts(work))
    second = lanes.submit_all([
        ({"x": one["x"] + 10}, todo) for one, todo in parts(work)
    ])  # fmt: skip
    first.result()
    second.result()


def test_where_a_part_fails_nothing_is_joined(lanes: Lanes) -> None:
    joined: list[int] = []

    def work(number: int) -> Work:
        def fail(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            if number == 1:
                raise ValueError("the second")
            return {}

        return fail

    with pytest.raises(ValueError, match="the second"):
        lanes.submit_all(parts(work), lambda: joined.append(1)).result()
    assert lanes.run(lambda: list(joined)) == []
    lanes.submit_all(parts(lambda _: lambda given: {}), lambda: joined.append(2)).result()
    assert joined == [2]


def test_an_error_of_the_join_comes_out_of_the_result(lanes: Lanes) -> None:
    def join() -> None:
        raise KeyError("no join")

    with pytest.raises(KeyError):
        lanes.submit_all(parts(lambda _: lambda given: {}), join).result()
    single = StreamLane("cpu")
    with pytest.raises(KeyError):
        single.submit_all([({}, lambda given: {})], join).result()
    single.close()


def test_run_has_all_lanes_wait(lanes: Lanes) -> None:
    seen: list[int] = []

    def work(number: int) -> Work:
        def note(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            seen.append(number)
            return {}

        return note

    for _ in range(5):
        lanes.submit_all(parts(work))
    assert len(lanes.run(lambda: list(seen))) == 5 * COUNT
    with pytest.raises(ZeroDivisionError):
        lanes.run(lambda: 1 // 0)


def test_submissions_from_several_threads_do_not_wait_for_one_another_for_ever(
    lanes: Lanes,
) -> None:
    joined: list[int] = []

    def submit(number: int) -> None:
        for _ in range(50):
            todo = parts(lambda _: lambda given: {})
            lanes.submit_all(todo, lambda: joined.append(number)).result()

    threads = [threading.Thread(target=submit, args=(i,), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(joined) == [i for i in range(4) for _ in range(50)]


def test_what_lanes_did_adds_up(lanes: Lanes) -> None:
    lanes.submit_all(parts(lambda _: lambda given: {"y": given["x"]})).result()
    lanes.run(list)
    assert (lanes.bytes_in, lanes.bytes_out) == (COUNT * 8, COUNT * 8)
    assert lanes.busy_seconds > 0
    assert lanes.devices == (torch.device("cpu"),) * COUNT
    assert lanes.device == torch.device("cpu")


def test_devices_are_named_with_commas() -> None:
    lane = open_lane("cpu")
    assert isinstance(lane, StreamLane)
    lane.close()
    with pytest.raises(ConfigError, match="names cpu twice"):
        open_lane("cpu, cpu")
    with pytest.raises(ConfigError, match="'cuda:98' is not there"):
        open_lane("cpu,cuda:98")
