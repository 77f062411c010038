import json
import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks import gpu, gpu_rows, hardware
from benchmarks.gpu_cost import SECTIONS, estimated_seconds, num_weights
from benchmarks.gpu_learning import gap, learning
from benchmarks.measure import take_turns
from benchmarks.peers import Peer
from benchmarks.statistics import Estimate
from benchmarks.trial import Job, run
from benchmarks.workload import Workload

TINY = Workload(
    layers=2, width=16, heads=4, vocab_size=40, prompt_tokens=3, new_tokens=5, shortest=2, rows=4, inner=24, epochs=1
)
SIZES = {"gpt2": TINY, "llama": replace(TINY, family="llama", kv_heads=2)}
QUICK = ["--device", "cpu", "--quick"]
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def a_peer(sizes, device, repeats, precision="float32"):
    return {"tokens_per_second": 10.0, "peak_memory_mb": 100.0}


def without_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB.\nMore about it.")


@pytest.fixture
def in_this_process(monkeypatch):
    """Whole iterations in this process, beside other libraries that cost nothing."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(gpu_rows, "in_fresh_process", lambda function, *args: function(*args))
    monkeypatch.setattr(gpu_rows, "PEERS", [Peer(name, a_peer, (), None, "made up") for name in ("TRL PPO", "SB3 PPO")])
    yield monkeypatch
    torch.set_num_threads(threads)


def model_of(sizes):
    return AutoModelForCausalLM.from_config(sizes.config(), attn_implementation="sdpa").eval()


# --- the command ------------------------------------------------------------------------------------------


def test_quick_run_measures_every_row_of_both_shapes(in_this_process, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert gpu.main([*QUICK, "--json", str(path)]) == 0
    assert capsys.readouterr().out.startswith("estimated cost: ")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["failures"] == {}
    assert report["circumstances"]["torch_threads"] == 1
    rows = {row["name"]: row for row in report["rows"]}
    for shape in gpu.SHAPES:
        for part in ("rollout", "token step", "update, FLOP", "host and env", "log-probabilities, peak", "iteration"):
            assert any(name.startswith(f"{shape} x 4: ") and part in name for name in rows), part
        assert 0 <= rows[f"{shape} x 4: cached - uncached log-probabilities, float32"]["value"] <= 1e-4
        assert 0 <= rows[f"{shape} x 4: cached - uncached log-probabilities, bf16"]["value"] <= 5e-2
    for row in rows.values():
        assert math.isfinite(row["value"])
        assert row["met"] is None  # tiny sizes say nothing about targets
    peak = rows["gpt2-small x 4: PPO iteration, peak memory"]
    assert (peak["baseline"], peak["baseline_value"]) == ("SB3 PPO", 100.0)


def test_targets_stand_at_the_real_sizes(in_this_process):
    benchmark = gpu_rows.Benchmark("gpt2-small", TINY, model_of(TINY), 1, "cpu", quick=True)
    targets = [row.target for name in SECTIONS if name != "log-probs" for row in benchmark.section(name)]
    assert targets == [">= 10", "<= 2", ">= 5", "", "", "", "", "<= 10", "<= 0.0001", "<= 0.05"]
    (update,) = replace(benchmark, shape="llama-1b").section("update")
    assert update.target == ">= 45"


def test_a_part_that_fails_is_said_and_the_others_are_measured(in_this_process, tmp_path, capsys):
    def broken(self):
        raise RuntimeError("no luck")

    in_this_process.setattr(gpu_rows.Benchmark, "host", broken)
    path = tmp_path / "gpu.json"
    asked = ["--shapes", "gpt2-small", "--rows", "host", "log-probs", "--json", str(path)]
    assert gpu.main([*QUICK, *asked]) == 1
    report = json.loads(path.read_text(encoding="utf-8"))
    assert "RuntimeError: no luck" in report["failures"]["gpt2-small x 4: host"]
    assert [row["name"] for row in report["rows"]] == ["gpt2-small x 4: log-probabilities, peak memory"]
    assert "FAILED: gpt2-small x 4: host" in capsys.readouterr().err


@pytest.mark.parametrize("family", SIZES)
def test_a_decoder_that_reads_the_wrong_places_misses_its_target(monkeypatch, family):
    class Late(gpu_rows.StaticDecoder):
        def _advance(self, tokens_N):
            super()._advance(tokens_N)
            self._positions.sub_(1)

    benchmark = gpu_rows.Benchmark("any", SIZES[family], model_of(SIZES[family]), 1, "cpu")
    assert benchmark.section("exactness")[0].met
    monkeypatch.setattr(gpu_rows, "StaticDecoder", Late)
    assert not benchmark.section("exactness")[0].met


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cpu"], "needs --quick"),
        ([*QUICK, "--envs", "3"], "multiples of 2"),
        ([*QUICK, "--repeats", "0"], "at least 1"),
        ([*QUICK, "--learning", "1"], "no interval"),
        ([*QUICK, "--shapes", "gpt3"], "gpt2-small"),
        pytest.param(
            [], "--device cpu --quick", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
        ),
    ],
)
def test_what_cannot_be_is_said_with_its_mend(options, message, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "sections", lambda *_: pytest.fail("it began"))
    with pytest.raises(SystemExit) as exit:
        gpu.main(options)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "available", "bf16", "message"),
    [
        (None, False, False, "install a build that has"),
        ("13.0", False, False, "CUDA_VISIBLE_DEVICES"),
        ("13.0", True, False, "compute capability 8.0"),
        ("13.0", True, True, None),
    ],
)
def test_every_reason_why_there_is_no_gpu_has_its_own_mend(monkeypatch, version, available, bf16, message):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    if message is None:
        gpu.check_device("cuda", quick=False)
    else:
        with pytest.raises(ValueError, match=message):
            gpu.check_device("cuda", quick=False)


@pytest.mark.parametrize(
    ("peer", "note"),
    [
        (Peer("TRL PPO", a_peer, ("a_library_that_is_not",), None, ""), "a_library_that_is_not is not installed"),
        (Peer("TRL PPO", without_memory, (), None, ""), "too little memory: CUDA out of memory. Tried to allocate 16"),
    ],
)
def test_a_library_that_cannot_run_leaves_our_figure_without_a_verdict(in_this_process, peer, note):
    in_this_process.setattr(gpu_rows, "PEERS", [peer])
    sizes = SIZES["llama"]
    speed, memory = gpu_rows.Benchmark("llama-1b", sizes, model_of(sizes), 1, "cpu").section("iteration")
    assert speed.value > 0
    assert (speed.ratio, speed.met, memory.ratio) == (None, None, None)
    assert note in speed.note


# --- what is counted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SIZES)
def test_flops_of_an_update_are_those_that_torch_counts(family):
    sizes = SIZES[family]
    model = AutoModelForCausalLM.from_config(sizes.config(), attn_implementation="eager")
    length = sizes.prompt_tokens + sizes.new_tokens
    ids = torch.randint(2, sizes.vocab_size, (sizes.rows, length))
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        model.get_output_embeddings()(hidden[:, sizes.prompt_tokens - 1 : -1]).sum().backward()
    # Eager attention looks at all pairs, and throws those away that the causal mask forbids.
    wasted = 12 * sizes.layers * sizes.width * sizes.rows * length * (length - 1) / 2
    rotary = counter.get_total_flops() - hardware.update_flops(model, sizes) - wasted
    assert 0 <= rotary <= (0 if family == "gpt2" else 2 * sizes.rows * length * sizes.width)


@pytest.mark.parametrize("family", SIZES)
def test_bytes_of_a_token_step_are_weights_and_keys_once(family):
    sizes = SIZES[family]
    model = model_of(sizes)
    agent = sizes.agent("cpu", "bf16", model=model)
    decoder = gpu_rows.StaticDecoder(agent.policy, sizes.rows, sizes.prompt_tokens + sizes.new_tokens)
    generator = torch.Generator().manual_seed(0)
    hardware.prompts_into(decoder, sizes)
    cached = []
    with torch.no_grad():
        for _ in range(sizes.new_tokens):
            places = int((decoder._host_positions + 1).sum())
            decoder.act(generator)
            layers = decoder.cache.layers
            cached.append(sum(2 * places * x.shape[1] * x.shape[3] for layer in layers for x in (layer.keys,)))
    weights = sum(weight.numel() for weight in model.parameters())
    if family == "gpt2":  # of the positions, one each
        weights += (sizes.rows - len(model.transformer.wpe.weight)) * sizes.width
    expected = 2 * (weights + sum(cached) / sizes.new_tokens)
    assert hardware.step_bytes(model, sizes) == pytest.approx(expected)


@pytest.mark.parametrize("shape", gpu.SHAPES)
def test_shapes_are_as_large_as_their_names_say(shape):
    sizes = gpu.SHAPES[shape]
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(sizes.config()).num_parameters()
    assert weights == pytest.approx({"gpt2-small": 124e6, "llama-1b": 1.236e9}[shape], rel=0.01)
    assert num_weights(sizes) == pytest.approx(weights, rel=0.01)
    largest = replace(sizes, rows=256)
    places = (sizes.width, sizes.vocab_size, largest.tokens)
    assert hardware.log_probs_bound_mb(*places) < 4 * largest.tokens * sizes.vocab_size / 2**20 / 3
    assert 60 < estimated_seconds(largest, SECTIONS, 5) < 3600


def test_bare_steps_write_a_token_each_and_start_anew():
    bare = hardware.BareSteps(model_of(TINY), TINY)
    for _ in range(2):
        bare.rewind()
        assert bare.run() == TINY.new_tokens
        assert int(bare.cache.get_seq_length()) == TINY.new_tokens
    assert bare.is_graph is False


@NEEDS_CUDA
@pytest.mark.parametrize("family", SIZES)
def test_bare_steps_are_one_graph_on_a_gpu(family):
    bare = hardware.BareSteps(model_of(SIZES[family]).cuda(), SIZES[family])
    assert bare.is_graph
    bare.rewind()
    bare.run()
    torch.cuda.synchronize()
    assert int(bare.cache.get_seq_length()) == TINY.new_tokens


@NEEDS_CUDA
def test_quick_run_on_a_gpu(in_this_process, tmp_path):
    path = tmp_path / "gpu.json"
    assert gpu.main(["--quick", "--json", str(path)]) == 0
    circumstances = json.loads(path.read_text(encoding="utf-8"))["circumstances"]
    assert circumstances["device"] == torch.cuda.get_device_name()
    assert circumstances["device_memory_gb"] > 0


def test_what_a_contender_needs_is_done_before_each_of_its_turns():
    done = []
    timings = take_turns(
        {"a": lambda: done.append("a") or 3, "b": lambda: done.append("b") or 5},
        repeats=2,
        on_gpu=False,
        before={"b": lambda: done.append("ready")},
    )
    assert done == ["a", "ready", "b"] * 3
    assert (timings["a"].units, timings["b"].units) == ([3, 3], [5, 5])


# --- learning ---------------------------------------------------------------------------------------------


def test_learning_on_the_cpu_is_as_learning_on_the_cpu(tiny_ladder):
    (row,) = learning("cpu", 2)
    assert (row.value, row.met) == (0.0, True)
    assert "cpu 0." in row.note


def test_intervals_that_miss_each_other_do_so_by_their_gap():
    low, high = Estimate(0.5, (0.4, 0.6)), Estimate(0.8, (0.7, 0.9))
    assert gap(low, high) == gap(high, low) == pytest.approx(0.1)
    assert gap(low, Estimate(0.7, (0.6, 0.8))) == 0
    with pytest.raises(ValueError, match="two or more"):
        gap(low, Estimate(0.5))


def test_a_contender_of_the_cpu_does_not_pretend_to_learn_elsewhere(tiny_ladder):
    assert "supervised learns on the CPU alone" in run(Job("Reverse", "supervised", 0, device="cuda"))["error"]
    assert run(Job("Reverse", "reinforce", 0, device="cpu"))["circumstances"]["device"] == "cpu"
