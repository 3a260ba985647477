"""Cost: operations counted by hand, timing in turns, settings restored, a machine line without secrets."""

from __future__ import annotations

import gc
import getpass
import json
import os
import platform
import socket
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.evaluation import cost, machine
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive
from tsprune.evaluation.cost import flops, latency, parameters, taking_turns
from tsprune.models.chronos2 import Chronos2

TINY = {
    "d_model": 8,
    "num_heads": 2,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 1,
    "chronos_config": {
        "context_length": 16,
        "input_patch_size": 4,
        "max_output_patches": 2,
        "quantiles": [0.1, 0.5, 0.9],
    },
}


class OneAttention(nn.Module):
    """A forecast that is one attention over the context and nothing else that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(6, heads=3, head_width=5)

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        mixed = self.attention(batch.context[..., None].expand(-1, -1, 6))
        return mixed[:, :1, :1].expand(-1, len(levels), horizon)


class Recorder:
    """Notes its name at every forecast and moves the fake clock on."""

    def __init__(self, name: str, calls: list[str], clock: FakeClock, takes: Sequence[int]) -> None:
        self.name, self.calls, self.clock, self.takes = name, calls, clock, list(takes)

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        self.calls.append(self.name)
        self.clock.now += self.takes[(self.calls.count(self.name) - 1) % len(self.takes)] * 1_000_000
        return torch.zeros(batch.rows, len(levels), horizon)


class FakeClock:
    """Nanoseconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def test_attention_counts_projections_and_both_products():
    length, rows = 7, 2
    projections = rows * length * (3 * 6 * 15 + 15 * 6)
    products = rows * 3 * length * length * (5 + 5)
    assert flops(OneAttention(), context=length, horizon=3, batch=rows) == 2 * (projections + products)


def test_tiny_chronos2_equals_the_hand_count():
    tokens, out = 4 + 1, 3 * 4
    embedding = tokens * (12 * 16 + 16 * 8 + 12 * 8)
    time = tokens * 4 * 8 * 8 + 2 * tokens * tokens * (4 + 4)
    group = tokens * 2 * 8 * 8  # a row that is alone needs values and output only
    feed = tokens * 2 * 8 * 16
    head = 8 * 16 + 16 * out + 8 * out
    assert flops(Chronos2(TINY), context=16, horizon=4) == 2 * (embedding + time + group + feed + head)


def test_operations_grow_with_the_batch_and_with_the_roll_out():
    model = Chronos2(TINY)
    once = flops(model, context=16, horizon=8)
    assert flops(model, context=16, horizon=8, batch=3) == 3 * once
    assert flops(model, context=16, horizon=9) > 2 * once


def test_model_is_left_in_its_mode_and_fused_attention_stays_on():
    model = Chronos2(TINY).train()
    flops(model, context=16, horizon=4)
    assert model.training
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_parameters_are_tensor_sizes_and_shared_ones_count_once():
    first, second = nn.Linear(3, 5), nn.Linear(3, 5)
    second.weight = first.weight
    assert parameters(nn.Sequential(first, second)) == 15 + 5 + 5


def test_baseline_costs_no_parameters_and_no_operations():
    assert parameters(SeasonalNaive(4)) == 0
    assert flops(SeasonalNaive(4), context=8, horizon=4) == 0


def test_models_take_turns_after_the_warm_up():
    calls: list[str] = []
    clock = FakeClock()
    models = {name: Recorder(name, calls, clock, [1]) for name in ("a", "b", "c")}
    latency(models, 2, 8, 4, repeats=3, warmup=2, clock=clock)
    assert calls == ["a", "a", "b", "b", "c", "c", *["a", "b", "c"] * 3]


def test_latency_gives_the_quartiles_of_each_model_in_milliseconds():
    clock = FakeClock()
    models = {
        "slow": Recorder("slow", [], clock, [50, 10, 40, 20, 30]),
        "even": Recorder("even", [], clock, [7]),
    }
    found = latency(models, 1, 8, 4, repeats=5, warmup=0, clock=clock)
    assert list(found) == ["slow", "even"]
    slow = found["slow"]
    assert (slow.minimum_ms, slow.q1_ms, slow.median_ms, slow.q3_ms) == pytest.approx((10, 20, 30, 40))
    assert found["even"].q1_ms == found["even"].q3_ms == pytest.approx(7)
    assert slow.cpu_ms >= 0


def test_calls_take_turns_and_rest_before_each_that_counts(monkeypatch: pytest.MonkeyPatch):
    events: list[object] = []
    clock = FakeClock()

    def sleep(seconds: float) -> None:
        events.append(seconds)
        clock.now += 10**9

    def call(name: int) -> None:
        events.append(name)
        clock.now += name * 1_000_000

    monkeypatch.setattr(cost.time, "sleep", sleep)
    found = taking_turns({n: partial(call, n) for n in (3, 4)}, 2, warmup=1, pause=0.5, clock=clock)
    assert events == [3, 4, 0.5, 3, 0.5, 4, 0.5, 3, 0.5, 4]
    assert {name: one.median_ms for name, one in found.items()} == pytest.approx({3: 3, 4: 4})


def test_free_memory_is_some_of_the_memory_there_is(monkeypatch: pytest.MonkeyPatch):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.free_memory() <= whole
    monkeypatch.setattr(machine.Path, "read_text", lambda *given, **named: "MemTotal: 8 kB\nMemAvailable: 5 kB\n")
    assert machine.free_memory() == 5 * 1024
    monkeypatch.setattr(machine.Path, "read_text", lambda *given, **named: "")
    assert machine.free_memory() == whole // 2


class Curious:
    """Looks at the settings during its forecasts; fails if told to."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.seen: list[tuple[int, bool]] = []
        self.contexts: list[Tensor] = []

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        self.seen.append((torch.get_num_threads(), gc.isenabled()))
        self.contexts.append(batch.context)
        if self.fails and len(self.seen) > 1:
            raise RuntimeError("broken model")
        return torch.zeros(batch.rows, len(levels), horizon)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("fails", [False, True])
def test_threads_and_collection_are_set_while_timing_and_restored_even_after_an_error(fails):
    model = Curious(fails)
    try:
        latency({"model": model}, 1, 8, 4, threads=1, repeats=2, warmup=1)
    except RuntimeError:
        assert fails
    assert {threads for threads, _ in model.seen} == {1}
    assert not any(collecting for _, collecting in model.seen[1:])
    assert torch.get_num_threads() == 2 and gc.isenabled()


def test_same_seed_times_the_same_batch_for_every_model_without_touching_the_global_generator():
    first, second, third = Curious(), Curious(), Curious()
    state = torch.get_rng_state()
    latency({"first": first, "second": second}, 2, 8, 4, repeats=1, seed=5)
    latency({"third": third}, 2, 8, 4, repeats=1, seed=6)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.contexts[0], second.contexts[0])
    assert not torch.equal(first.contexts[0], third.contexts[0])


@pytest.mark.parametrize(("used", "busy"), [(0.0, False), (1e6, True)])
def test_neighbours_that_use_the_cores_mark_the_times_as_busy(monkeypatch, used, busy):
    readings = iter([100.0, 100.0 + used])
    monkeypatch.setattr(machine, "cpu_seconds_of_others", lambda: next(readings))
    assert latency({"model": Curious()}, 1, 8, 4, repeats=1)["model"].busy is busy


@pytest.mark.parametrize(("load", "busy"), [(0.0, False), (1e6, True)])
def test_load_average_decides_where_the_system_does_not_count_neighbours(monkeypatch, load, busy):
    monkeypatch.setattr(machine, "cpu_seconds_of_others", lambda: None)
    monkeypatch.setattr(machine, "load_average", lambda: load)
    assert latency({"model": Curious()}, 1, 8, 4, repeats=1)["model"].busy is busy


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"repeats": 0}, {"warmup": -1}, {"batch_size": 0}, {"horizon": 0}])
def test_impossible_timing_is_refused(wrong):
    sizes = {"batch_size": 1, "context": 8, "horizon": 4} | wrong
    with pytest.raises(TspruneError):
        latency({"model": Curious()}, **sizes)


def test_network_without_a_forecast_is_refused():
    with pytest.raises(TspruneError, match="Linear has no forecast"):
        flops(nn.Linear(2, 2), context=4, horizon=2)


def test_neighbours_are_all_busy_time_of_the_machine_without_our_own(monkeypatch):
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, wait, irq, soft, steal = (ticks * n for n in (50, 4, 20, 900, 70, 3, 2, 1))
    stat = f"cpu  {user} {nice} {system} {idle} {wait} {irq} {soft} {steal} 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: stat)
    monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=25.0, system=5.0))
    assert machine.cpu_seconds_of_others() == 50 + 4 + 20 + 3 + 2 + 1 - 30


def test_machine_line_names_the_hardware_and_software_in_one_line():
    line = machine.machine_line(threads=1)
    assert machine.cpu_model() in line and f"{machine.cores()} core" in line
    assert f"torch {torch.__version__}" in line and f"Python {platform.python_version()}" in line
    assert "timed on 1 thread," in line + "," and "\n" not in line


def test_machine_line_of_a_busy_machine_says_so():
    assert "BUSY" in machine.machine_line(busy=True)
    assert "BUSY" not in machine.machine_line()


def test_machine_line_and_versions_give_away_no_names_or_paths(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    text = machine.machine_line() + json.dumps(machine.versions())
    words = set(text.replace(",", " ").split())
    assert not {socket.gethostname(), getpass.getuser(), "secret-host"} & words
    assert os.getcwd() not in text and os.path.expanduser("~") not in text


def test_processor_without_cpuinfo_still_has_a_name(monkeypatch):
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    assert machine.cpu_model()
    assert machine.cpu_seconds_of_others() is None


def test_versions_hold_python_and_torch_and_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(machine, "_PACKAGES", ("torch", "surely-not-installed-anywhere"))
    assert machine.versions() == {"python": platform.python_version(), "torch": torch.__version__}


def test_random_batch_has_the_sizes_asked_for():
    assert cost.random_batch(SeasonalNaive(1), 3, 5, 2).context.shape == (3, 5)
