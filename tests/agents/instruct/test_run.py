import copy
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import cli
from agents.instruct.data import Instruction, Limits, as_task, rules
from agents.instruct.fit import InstructConfig, evaluate_answers, mean_loss
from agents.instruct.run import REPORT, instruct, read_report, rounds_table
from agents.instruct.settings import InstructSettings
from agents.micro_batches import MicroBatches
from agents.supervised import reference_pairs
from tests.agents.conftest import make_policy, pair_loss, word_tokenizer
from tests.agents.instruct.test_data import write
from textgen_env import TextTokenizer

SMALL = {"width": 32, "heads": 2, "layers": 1, "vocab_size": 300, "eval_prompts": 4}
QUICK = {"epochs": 2.0, "batch_size": 8, "validate_every": 3, "patience": None}
VERBS = ("Copy", "Repeat", "Write", "Say", "Tell", "Give", "Show", "Name")


def records(adverbs=("now", "twice", "softly", "well"), inputs=2):
    return [
        {"instruction": f"{verb} it {adverb}", "input": word, "output": f"{word} {adverb}"}
        for verb in VERBS
        for adverb in adverbs
        for word in ("fox", "hen", "cow")[:inputs]
    ]


@pytest.fixture
def data(tmp_path):
    return str(write(tmp_path / "a.jsonl", *records()))


@pytest.fixture
def more(tmp_path):
    return str(write(tmp_path / "b.jsonl", *records(("soon", "later", "never"))))


def run(data, output, say=lambda line: None, fit=(), resume=False, on_step=None, **options):
    settings = InstructSettings(
        data, output=str(output), **{**(SMALL if "previous" not in options else {"eval_prompts": 4}), **options}
    )
    return instruct(settings, InstructConfig(**{**QUICK, **dict(fit)}), say=say, resume=resume, on_step=on_step)


def files(folder):
    """What must be equal in two runs of one kind."""
    report = read_report(folder)
    report["settings"].pop("output")
    return report, (folder / "model.safetensors").read_bytes()


# --- the loss and the measures


def pairs_mdp(split="train"):
    records = [Instruction("a", "", "b c", "f"), Instruction("a b", "", "d", "f"), Instruction("c", "", "e", "g")]
    task = as_task({"train": records, "validation": [], "test": records}, lambda instruction, given: instruction)
    return rules(task, TextTokenizer(word_tokenizer("a b c d e f")), Limits(2, 3), split)


def test_only_the_answer_and_its_eos_are_learned():
    """The gradient of the prompt's own predictions is nothing; with the prompt in the loss it is something."""
    policy = make_policy(vocab_size=8)
    pairs = reference_pairs(pairs_mdp())
    loss, _ = pair_loss(policy, pairs, [0])  # a → b c <eos>
    ids = torch.tensor([[2, 3, 4, 1]])
    log_probs = policy.model(input_ids=ids).logits[0].log_softmax(-1)
    by_hand = -(log_probs[0, 3] + log_probs[1, 4] + log_probs[2, 1]) / 3
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), abs=1e-12)
    without_eos = -(log_probs[0, 3] + log_probs[1, 4]) / 2
    assert abs(float((loss - without_eos).detach())) > 1e-3  # must fail: the EOS left out


def test_validation_loss_does_not_depend_on_its_batches():
    policy, pairs = make_policy(vocab_size=8), reference_pairs(pairs_mdp())
    sizes = [MicroBatches(policy, InstructConfig(micro_batch_tokens=5 * count)) for count in (1, 2, 3)]
    losses = [mean_loss(policy, pairs, size) for size in sizes]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-12)
    mean_of_means = sum(pair_loss(policy, pairs, [row])[1] for row in range(3)) / 3
    assert abs(mean_of_means - losses[0]) > 1e-3  # must fail: pairs weighed alike, whatever their lengths


def test_answers_are_measured_by_file():
    found = evaluate_answers(make_policy(dtype=torch.float32, vocab_size=8), pairs_mdp("test"), num_prompts=5)
    assert {source: figures["prompts"] for source, figures in found.items()} == {"f": 2, "g": 1}
    for figures in found.values():
        for measure in ("exact_match", "rouge_l", "token_f1"):
            assert 0 <= figures[measure]["mean"] <= 1
    assert found["g"]["exact_match"]["interval"] is None
    assert found["g"]["samples"][0]["reference"] == "e"


# --- a run


def test_a_run_leaves_a_hugging_face_folder(data, tmp_path, capsys):
    lines = []
    result = run(data, tmp_path / "out", lines.append)
    model = AutoModelForCausalLM.from_pretrained(result.folder)
    tokenizer = AutoTokenizer.from_pretrained(result.folder)
    ids = torch.tensor([tokenizer.encode("### Instruction:\nSay it now")])
    with torch.no_grad():
        ours = result.policy.model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, ours)
    assert not list(result.folder.glob("*.pt"))
    report = read_report(result.folder)
    assert report["status"] == "finished"
    start, first = report["rounds"]
    assert (start["data"], first["data"]) == ([], [data])
    assert set(first["held_out"][data]) >= {"exact_match", "rouge_l", "token_f1", "prompts"}
    assert first["validation"][0]["validation_loss"] > first["validation"][-1]["validation_loss"]
    assert first["steps"] == math.ceil(2 * first["records"] / 8)
    assert list(rounds_table(result.rounds).header) == ["", "start", "round 1"]
    assert any(line.startswith("held out") for line in lines)
    assert cli.main(["train", "--data", data, "--prompt-field", "instruction", "--reference-field", "output",
                     "--reward", "rouge_l", "--model", str(result.folder), "--total-tokens", "60",
                     "--episodes-per-rollout", "8", "--eval-prompts", "2", "--max-new-tokens", "4",
                     "--output", str(tmp_path / "rl"), "--quiet"]) == 0  # fmt: skip


def test_it_learns_to_follow_instructions_it_has_not_seen(tmp_path):
    """The answer is the instruction's adverb: the held-out ones pair it with other verbs."""
    adverbs = ["now", "twice", "softly", "well", "soon", "late", "once", "here", "there", "thus"]
    told = [{"instruction": f"{verb} {adverb}", "output": adverb} for verb in VERBS for adverb in adverbs]
    data = str(write(tmp_path / "a.jsonl", *told))
    fit = {"epochs": 15.0, "validate_every": 1000}
    result = run(data, tmp_path / "out", fit=fit, width=64, template="{instruction}:", eval_prompts=20)
    before, after = (done.held_out[data] for done in result.rounds)
    assert before["exact_match"]["mean"] < 0.2
    assert after["exact_match"]["mean"] >= 0.8


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kill_at", [(1, 4), (2, 1), (2, 5)])
def test_a_killed_run_goes_on_to_the_same_end(data, more, tmp_path, kill_at):
    """In the first round, and at the start and the middle of the second: weights and figures of a whole run."""
    options = {"by_round": True}
    run((data, more), tmp_path / "whole", **options)
    last, number = [math.inf], [0]

    def on_step(step, steps, loss):
        number[0] += step < last[0]
        last[0] = step
        if (number[0], step) == kill_at:
            raise Killed

    with pytest.raises(Killed):
        run((data, more), tmp_path / "killed", on_step=on_step, **options)
    with pytest.raises(FileExistsError, match="--resume"):
        run((data, more), tmp_path / "killed", **options)
    resumed = run((data, more), tmp_path / "killed", resume=True, **options)
    assert not resumed.interrupted
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_changed_data_do_not_go_on(data, more, tmp_path):
    def on_step(step, steps, loss):
        raise Killed

    with pytest.raises(Killed):
        run(data, tmp_path / "out", on_step=on_step)
    write(tmp_path / "a.jsonl", *records()[1:])
    with pytest.raises(ValueError, match=r"a\.jsonl' has changed since it was learned"):
        run(data, tmp_path / "out", resume=True)


def test_early_stop_keeps_the_best_weights(data, tmp_path, monkeypatch):
    """Validation losses that fall, then rise: the weights of the least are kept, and the fit ends early."""
    losses = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    seen = []

    def falls_then_rises(policy, pairs, batch_size):
        seen.append(copy.deepcopy(policy.model.state_dict()))
        return next(losses)

    monkeypatch.setattr("agents.instruct.fit.mean_loss", falls_then_rises)
    result = run(data, tmp_path / "out", fit={"epochs": 9.0, "validate_every": 2, "patience": 2})
    assert (result.rounds[1].steps, result.rounds[1].best_step) == (8, 4)
    kept = result.policy.model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())
    assert not all(torch.equal(kept[name], value) for name, value in seen[3].items())  # must fail: the last


# --- rounds


def test_rounds_stand_side_by_side(data, more, tmp_path):
    result = run((data, more), tmp_path / "out", by_round=True)
    assert [done.data for done in result.rounds] == [[], [data], [more]]
    assert result.rounds[2].records > result.rounds[1].records  # both files, with replay
    assert all(set(done.held_out) == {data, more} for done in result.rounds)
    table = rounds_table(result.rounds)
    assert list(table.header) == ["", "start", "round 1", "round 2"]
    assert len(table.rows) == 2 * 3
    alone = run((data, more), tmp_path / "alone", by_round=True, replay=False)
    assert alone.rounds[2].records == result.rounds[2].records - result.rounds[1].records


def test_going_on_from_a_result_is_the_round_that_would_have_come(data, more, tmp_path):
    """--from leaves the weights of a run that had both files planned, and a table with all rounds."""
    quick = {"fit": {"epochs": 0.5}, "max_prompt_tokens": 120, "max_new_tokens": 40}
    start = run(data, tmp_path / "start", **quick).folder
    own = dict.fromkeys(SMALL.keys() - {"eval_prompts"})
    given = {**{name: getattr(InstructSettings, name) for name in own}, "model": str(start), **quick}
    planned = run((data, more), tmp_path / "planned", by_round=True, **given)
    first = run(data, tmp_path / "first", **given)
    second = run(more, tmp_path / "second", previous=str(first.folder), fit=quick["fit"])
    assert files(second.folder)[1] == files(planned.folder)[1]
    assert [done.data for done in second.rounds] == [[], [data], [more]]
    assert set(second.rounds[0].held_out) == {data}
    assert second.rounds[0] == first.rounds[0]
    assert second.rounds[1].held_out == planned.rounds[1].held_out  # the new file's were measured before it was learned
    assert second.rounds[2] == planned.rounds[2]
    assert rounds_table(second.rounds).rows[-1][1] == "–"
    assert read_report(second.folder)["limits"] == {"prompt": 120, "answer": 40}
    with pytest.raises(ValueError, match="more than the model's 512 positions"):
        run(more, tmp_path / "third", previous=str(first.folder), max_new_tokens=500)
    with pytest.raises(ValueError, match="was learned in an earlier round"):
        run(data, tmp_path / "third", previous=str(first.folder))
    with pytest.raises(ValueError, match="template has no effect here"):
        run(more, tmp_path / "third", previous=str(first.folder), template="{instruction} {input}")
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*first'"):
        run(more, tmp_path / "third", previous=str(tmp_path / "firts"))


# --- what is refused


def test_too_long_records_are_counted(data, tmp_path):
    with pytest.raises(ValueError, match=r"64 of 64 records are longer than 5 tokens of prompt .* --too-long cut"):
        run(data, tmp_path / "out", max_prompt_tokens=5)
    assert not (tmp_path / "out").exists()  # nothing was begun
    lines = []
    run(data, tmp_path / "out", lines.append, max_prompt_tokens=5, too_long="cut", fit={"epochs": 0.1})
    assert any("64 of 64 records are longer" in line and line.endswith("they are cut") for line in lines)
    with pytest.raises(ValueError, match="no training record fits"):
        run(data, tmp_path / "none", max_prompt_tokens=5, too_long="drop")


def test_held_out_sides_must_not_be_empty(tmp_path):
    data = str(write(tmp_path / "one.jsonl", *[{"instruction": "Say it", "output": "it"}] * 3))
    with pytest.raises(ValueError, match=r"no instruction is (held out|on the training side)"):
        run(data, tmp_path / "out")
    with pytest.raises(ValueError, match="held out for validation, which early stopping goes by"):
        run(data, tmp_path / "early", split_fractions=(1, 0, 0), fit={"patience": 2})
    result = run(data, tmp_path / "all", split_fractions=(1, 0, 0))
    assert [done.held_out for done in result.rounds] == [{}, {}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": ()}, "name the data"),
        ({"data": ("a.jsonl", "a.jsonl")}, "named twice"),
        ({"output": None}, "say --output"),
        ({"model": "gpt2", "width": 64}, "width has no effect here"),
        ({"model": "gpt2", "previous": "x"}, "not both"),
        ({"too_long": "cutt"}, "did you mean 'cut'"),
        ({"eval_prompts": 0}, "eval_prompts must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_together(options, message):
    with pytest.raises(ValueError, match=message):
        InstructSettings(**{"data": "a.jsonl", "output": "out", **options})


# --- the command


def test_the_command_and_its_resume(data, tmp_path, capsys, monkeypatch):
    flags = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    quick = ["--epochs", "1", "--batch-size", "16", "--patience", "none"]
    out = tmp_path / "out"
    assert cli.main(["instruct", data, "--output", str(out), *flags, *quick, "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "exact_match" in shown
    assert "round 1" in shown
    assert f"model: {out}" in shown
    assert cli.main(["instruct", "--resume", str(out)]) == 2
    assert f"is finished: go on from it with --from {out}" in capsys.readouterr().err
    assert cli.main(["instruct", data, "--resume", str(out)]) == 2
    assert "--resume keeps the run's own settings" in capsys.readouterr().err
    assert cli.main(["instruct", data, "--output", str(tmp_path / "new"), "--templat", "x"]) == 2
    assert "did you mean '--template'" in capsys.readouterr().err
    assert json.loads((out / REPORT).read_text())["settings"]["vocab_size"] == 300
