"""Token buckets and the concurrency, on a clock of the test's own."""

from __future__ import annotations

from bridge.consul.ratelimit import AdaptiveConcurrency, TokenBucket, jittered


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_free_and_the_rest_comes_at_the_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=3.0, clock=Clock())
    assert [bucket.take() for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]


def test_quiet_time_fills_the_bucket_up_to_the_burst_and_no_further() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=2.0, burst=3.0, clock=clock)
    for _ in range(3):
        bucket.take()
    clock.now += 3600
    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_waiting_as_required_keeps_exactly_to_the_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=20.0, burst=10.0, clock=clock)
    taken = 0
    while clock.now < 110.0:
        clock.now += bucket.take()
        taken += 1
    assert 10 + 20 * 10 - 1 <= taken <= 10 + 20 * 10 + 1


def test_large_things_cost_more() -> None:
    bucket = TokenBucket(rate=1000.0, burst=1000.0, clock=Clock())
    assert bucket.take(3000) == 2.0


def test_jitter_only_ever_shortens() -> None:
    values = [jittered(100.0) for _ in range(200)]
    assert 90.0 <= min(values) < 93.0
    assert 97.0 < max(values) <= 100.0


def test_the_throttle_shrinks_once_per_wave_of_refusals() -> None:
    clock = Clock()
    concurrency = AdaptiveConcurrency(56, clock)
    for _ in range(10):
        concurrency.throttled()
    assert concurrency.limit == 42
    clock.now += 5
    concurrency.throttled()
    assert concurrency.limit == 31


def test_the_throttle_never_falls_below_nothing() -> None:
    clock = Clock()
    concurrency = AdaptiveConcurrency(3, clock)
    for _ in range(10):
        clock.now += 5
        concurrency.throttled()
    assert concurrency.limit == 0


def test_the_throttle_grows_back_one_by_one_after_quiet() -> None:
    clock = Clock()
    concurrency = AdaptiveConcurrency(8, clock)
    concurrency.throttled()
    assert concurrency.limit == 6
    history = []
    for _ in range(80):
        clock.now += 1
        concurrency.tick()
        history.append(concurrency.limit)
    assert history[28] == 6  # quiet for less than 30 s
    assert history[29] == 7
    assert history[43] == 7
    assert history[44] == 8
    assert history[-1] == 8


def test_refusals_in_between_postpone_growing() -> None:
    clock = Clock()
    concurrency = AdaptiveConcurrency(8, clock)
    concurrency.throttled()
    for _ in range(20):
        clock.now += 20
        concurrency.throttled()
        assert concurrency.tick() is False
