"""Two models on the same prompts, and the page, JSON and card that come of it."""

import json
import math
import shlex

import pytest
import torch
import yaml

from agents.alignment.answers import Side, play, returns
from agents.alignment.duel import as_pairwise
from agents.alignment.inputs import read_feedback
from agents.alignment.page import at_the_same_kl, blocks, model_card, number, write_page
from agents.alignment.report import Questions, align
from agents.alignment.swaps import Swaps
from agents.cli import main
from agents.document import to_markdown
from agents.evaluation import evaluate
from reward_models.feedback import FeedbackStore, Item, Prefer, Skip
from tests import snippets
from tests.agents.conftest import PROMPTS, letters, make_agent, make_mdp
from tests.agents.test_cli import TINY
from tests.agents.test_credit import HOSTILE, Elements
from tests.reward_models import tiny_models as tiny
from textgen_env import Reward, resolve_reward


def two_sides():
    """A model that likes a's better than its reference does."""
    agent = make_agent()
    with torch.no_grad():
        agent.policy.model.get_input_embeddings().weight[2] *= 3
    mdp = make_mdp()
    return Side("model", agent.policy, mdp), Side("reference", agent.reference, mdp), agent


def count_of_b(completions):
    return [float(text.split().count("b")) for text in completions]


def longer(pairs):
    return [None if len(a) == len(b) else int(len(b) > len(a)) for a, b in pairs]


RECORDS = [
    {"prompt": prompt, "chosen": "a a", "rejected": "b", "annotator": who, "sources": ["model", "reference"]}
    for prompt in PROMPTS
    for who in ("x", "y")
] + [
    {"prompt": prompt, "completion": " ".join("a" * n), "rating": n, "annotator": who}
    for n, prompt in enumerate(PROMPTS, start=1)
    for who in ("x", "y")
]


@pytest.fixture(scope="module")
def report():
    model, reference, _ = two_sides()
    questions = Questions(
        scorers={"letters": resolve_reward(letters), "b": Reward(count_of_b)},
        pairwise={"longer": as_pairwise(longer)},
        judgements=RECORDS,
        swaps=Swaps([("a", "b")], "letters"),
        fluency=lambda prompts, texts: ([-2.0 * len(text.split()) for text in texts], [len(t.split()) for t in texts]),
        fluency_name="a judge",
        checkpoints=[reference],
    )
    return align(model, reference, questions, num_prompts=6, samples_per_prompt=3, best_of=8, seed=0)


def test_the_reward_and_the_kl_are_those_of_evaluate(report):
    """Up to sampling: `evaluate` draws with its own seed."""
    model, _, agent = two_sides()
    found = evaluate(agent, model.mdp, num_prompts=6, samples_per_prompt=50)
    played = play(model, range(6), 50, seed=1)
    scores = returns(model.mdp, model.mdp.reward, played.completions)
    assert scores.mean() == pytest.approx(found.mean, abs=0.2)
    low, high = report.reward.model.interval
    assert low - 0.3 < found.mean < high + 0.3
    assert report.kl.k1.value == pytest.approx(found.kl_per_sequence, abs=5 * report.kl.k1.standard_error)


def test_what_was_asked_is_there(report):
    assert set(report.duels) == {"letters", "b", "longer", "people"}
    assert report.duels["people"].wins == 12
    assert report.duels["letters"].rate.value > 0.5 > report.duels["b"].rate.value - 0.5
    assert report.duels["longer"].order.inconsistent.hits == 0
    pairs, ratings = report.consistency["letters"]
    assert (pairs.score.value, pairs.ceiling.value, ratings.score.value, ratings.ceiling.value) == (1, 1, 1, 1)
    assert report.consistency["b"][0].score.value == 0
    assert report.texts["model"].perplexity.value == pytest.approx(math.exp(2))
    (unclear,) = report.missing  # none of the rated texts has a b
    assert "consistency of 'b' with people: a correlation wants" in unclear


def test_swaps_show_what_a_scorer_minds(report):
    """`letters` pays for each a: with b for a, it pays less."""
    assert report.swaps["letters"].gap.value < 0 < report.swaps["b"].gap.value
    assert report.swapped_prompts["b"].texts == sum("a" in prompt or "b" in prompt for prompt in PROMPTS)


def test_the_frontier_goes_from_the_reference_to_the_model(report):
    assert [point.label for point in report.frontier] == ["reference", "reference", "model"]
    assert report.frontier[1].kl == pytest.approx(0, abs=1e-6)  # the checkpoint is the reference itself
    assert report.frontier[-1].kl == report.kl.exact.value > 0
    assert report.best_of_n[0].kl == 0
    assert report.best_of_n[-1].reward.value > report.best_of_n[0].reward.value
    beaten = at_the_same_kl(report)
    if beaten is not None:
        assert report.best_of_n[0].reward.value <= beaten <= report.best_of_n[-1].reward.value


def test_the_same_seed_gives_the_same_report():
    model, reference, _ = two_sides()
    questions = Questions(scorers={"letters": resolve_reward(letters)})
    first, again = (
        align(model, reference, questions, num_prompts=2, samples_per_prompt=2, best_of=2, seed=4).to_dict()
        for _ in range(2)
    )
    assert first == again


def test_without_reference_and_scorers_texts_are_left():
    model, _, _ = two_sides()
    found = align(model, None, Questions(has_reward=False), num_prompts=2)
    assert found.reward is found.kl is None
    assert found.duels == found.consistency == {}
    assert "There is no reference model" in found.missing[0]
    assert set(found.texts) == {"model"}
    with pytest.raises(ValueError, match="best_of=0"):
        align(model, None, Questions(has_reward=False), best_of=0)


def test_figures_are_plain_json(report):
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["duels"]["people"]["rate"]["value"] == 1
    assert plain["kl"]["exact"]["standard_error"] > 0


# --- the page and the card ------------------------------------------------------------------------------


def test_the_page_says_all_of_it_and_asks_nobody(report, tmp_path):
    write_page(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Elements(text)
    for words in ("Win rate against the reference", "Consistency with people", "Counterfactual swaps", "Self-BLEU"):
        assert words in page.text
    for words in ("Reward for distance", "nats a token", "What this does not show", "both orders", "a judge"):
        assert words in page.text
    sources = [attrs["src"] for _, attrs in page.elements if "src" in attrs]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert "http" not in text.replace("http-equiv", "")
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert "prefers-color-scheme: dark" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]


def test_what_models_and_files_say_is_never_interpreted(tmp_path):
    model, reference, _ = two_sides()
    hostile = [Side(HOSTILE, side.policy, side.mdp) for side in (model, reference)]
    questions = Questions(scorers={HOSTILE: resolve_reward(letters)}, swaps=Swaps([("a", "b")], HOSTILE))
    found = align(*hostile, questions, num_prompts=2, best_of=2)
    write_page(found, tmp_path / "report.html")
    page = Elements((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count("alert('x')") >= 5
    card = model_card(found, {HOSTILE: HOSTILE})
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    assert "\n<script>" not in card


def test_the_card_has_front_matter_that_the_hub_reads(report):
    card = model_card(report, {"Learned by": "ppo"}, base_model="gpt2")
    _, head, body = card.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["base_model"] == "gpt2"
    assert data["pipeline_tag"] == "text-generation"
    (results,) = data["model-index"]
    values = {one["name"]: one["value"] for one in results["results"][0]["metrics"]}
    assert values["mean letters"] == pytest.approx(report.reward.model.value, abs=1e-6)
    assert "| Learned by | ppo |" in body
    assert "## Win rate against the reference" in body
    assert "What this does not show" in body
    assert to_markdown(list(blocks(report))).count("# ") >= 5


def test_numbers():
    assert number(float("nan")) == "–"
    assert (number(12.345), number(0.5, signed=True)) == ("12.3", "+0.500")


# --- the command ----------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.gpt2().save_pretrained("model")
    other = tiny.gpt2()
    with torch.no_grad():
        other.get_input_embeddings().weight *= 0.7
    other.save_pretrained("model0")
    for folder in ("model", "model0"):
        tiny.lm_tokenizer().save_pretrained(folder)
    prompts = [{"prompt": text, "reference": "the cat sat"} for text in ("the cat", "rain", "a dog ran", "night")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("the cat\n\nrain\n", encoding="utf-8")
    (tmp_path / "swaps.json").write_text('[["cat", "dog"]]', encoding="utf-8")
    (tmp_path / "own_judges.py").write_text("def first(pairs):\n    return [0] * len(pairs)\n", encoding="utf-8")
    with FeedbackStore("feedback.db", create=True) as store:
        store.add_items([Item.of("rain", ["the cat sat", "dog"], sources=["new", "old"])])
        task = store.assign("ada")
        store.submit("ada", task.id, "1", Prefer(task.completions.index("the cat sat")))
        store.add_items([Item.of("night", ["x", "y"])])
        task = store.assign("ada")
        store.submit("ada", task.id, "2", Skip("both are bad"))
    return tmp_path


SMALL = shlex.split("--num-prompts 3 --samples-per-prompt 2 --best-of 2 --max-new-tokens 6 --device cpu")


def test_the_command(workplace, capsys):
    arguments = "report model --reference model0 --prompts prompts.jsonl --reward rouge_l --judge own_judges:first"
    more = "--judge token_f1 --swaps swaps.json --fluency model0 --feedback feedback.db --sources new old"
    assert main([*arguments.split(), *more.split(), *SMALL, "--checkpoint", "model0"]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    for words in ("reward rouge_l: ", "win rate, own_judges:first: 0.500", "win rate, people: 1.000", "KL: "):
        assert words in told
    figures = json.loads((workplace / "report.json").read_text(encoding="utf-8"))
    assert figures["settings"]["reward"] == "rouge_l"
    assert set(figures["figures"]["duels"]) == {"rouge_l", "token_f1", "own_judges:first", "people"}
    assert figures["figures"]["consistency"]["rouge_l"][0]["items"] == 1
    assert "Compared with" in (workplace / "model" / "README.md").read_text(encoding="utf-8")
    again = "report model --prompts prompts.txt --output second/page.html"
    assert main([*again.split(), *SMALL]) == 0, capsys.readouterr().err  # its own card may be written anew
    assert "There is no reference model" in capsys.readouterr().out
    assert (workplace / "second" / "page.html").is_file()


def test_the_commands_of_the_page(workplace, capsys):
    for name, folder in (("my-model", "model"), ("my-lm", "model0")):
        (workplace / folder).rename(workplace / name)
    (workplace / "prompts.jsonl").rename(workplace / "openings.jsonl")
    (workplace / "own_judges.py").rename(workplace / "my_judges.py")
    (workplace / "my_judges.py").write_text("def longer(pairs):\n    return [None] * len(pairs)\n", encoding="utf-8")
    records = [{"prompt": "rain", "chosen": "a good cat", "rejected": "dog", "annotator": who} for who in "xy"]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (workplace / "feedback.jsonl").write_text(lines, encoding="utf-8")
    commands = [line for line in snippets.commands("docs/evaluation.md") if line.startswith("textgen ")]
    assert [line.split()[1] for line in commands] == ["report", "report", "attention"]
    for line in commands:
        words = shlex.split(line)[1:]
        assert main([*words, *(SMALL if words[0] == "report" else [])]) == 0, capsys.readouterr().err
    assert {path.name for path in (workplace / "full").iterdir()} == {"report.html", "report.json"}


def test_a_run_brings_prompts_reward_and_reference(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"question": f"{name} has {count} {pet}s.", "answer": f"{name}: {count} {pet}s"}
        for name in ("Ann", "Bob", "Cid", "Dee")
        for pet in ("cat", "dog", "owl")
        for count in range(2, 6)
    ]
    (tmp_path / "pets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["train", "--data", "pets.jsonl", "--reward", "rouge_l", *TINY, "--output", "run"]) == 0
    small = shlex.split("--num-prompts 2 --samples-per-prompt 2 --best-of 2 --device cpu --fluency run/model")
    assert main(["report", "run", *small]) == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["figures"]
    labels = [point["label"] for point in figures["frontier"]]
    assert labels[0] == "reference"
    assert labels[-1] == "run"
    assert labels[1].startswith("after ")  # what the run has measured
    assert figures["reference"] == "the model that RL began with"
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "| Learned by | ppo |" in card
    assert "base_model" not in card  # a fresh model has none


def test_swapped_prompts_are_not_cut():
    """Pytest makes the environment's warning of a cut prompt an error."""
    model, reference, _ = two_sides()
    questions = Questions(
        scorers={"b": Reward(count_of_b)},
        swaps=Swaps([("a", "b c d e f")], "longer"),
        fluency=lambda prompts, texts: ([-1.0] * len(texts), [1] * len(texts)),
        fluency_name="reference",
    )
    found = align(model, reference, questions, num_prompts=6, samples_per_prompt=1, best_of=1)
    assert found.swapped_prompts["b"].texts == 3
    assert any("judges fluency and is judged" in sentence for sentence in found.missing)
    assert found.best_of_n == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("report model", "--prompts or --env"),
        ("report model --prompts prompts.yaml", "no file of prompts"),
        ("report model --prompts prompts.txt --env x", "either prompts or env"),
        ("report model --prompts prompts.txt --reward rouge_k", "did you mean 'rouge_l'"),
        ("report model --prompts prompts.txt --judge own_judges:frist", "did you mean 'first'"),
        ("report model --prompts prompts.txt --swaps gendre", "did you mean 'gender'"),
        ("report model --prompts prompts.txt --max-new-tokens 99", "has 32 positions only"),
        ("report model --prompts prompts.txt --feedback prompts.jsonl", "no judgement"),
        ("report model --prompts prompts.txt --samples-per-prompts 3", "--samples-per-prompt"),
    ],
)
def test_mistakes_name_the_mend(workplace, capsys, arguments, message):
    assert main(arguments.split()) == 2
    assert message in capsys.readouterr().err


def test_somebody_elses_card_is_left_alone(workplace, capsys):
    (workplace / "model" / "README.md").write_text("mine", encoding="utf-8")
    assert main(["report", "model", "--prompts", "prompts.txt", *SMALL]) == 2
    assert "not from here" in capsys.readouterr().err
    assert main(["report", "model", "--prompts", "prompts.txt", *SMALL, "--card", "no"]) == 0
    assert (workplace / "model" / "README.md").read_text(encoding="utf-8") == "mine"


def test_feedback_from_a_store_leaves_skips_out(workplace):
    (record,) = read_feedback("feedback.db")
    assert record["chosen"] == "the cat sat"
