import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from agents.credit import TextCredit, TokenCredit, credit, token_texts
from agents.credit_page import credit_lines, credit_page, visible
from agents.evaluation import evaluate
from agents.reinforce import REINFORCE
from agents.saved import PlainModel
from tests.agents.conftest import PROMPTS, gpt2_config, letters, make_agent, make_env, make_mdp, weights
from textgen_env import TextTokenizer, dense
from textgen_env.tokenizer import train_tokenizer


def moved_agent(**options):
    """An agent with a critic, some way from its reference."""
    agent = make_agent(**options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        agent.policy.model.get_output_embeddings().weight *= 1.5
        agent.policy.value_head.weight.copy_(torch.randn(1, 32, generator=generator))
    return agent


def gae_by_hand(text, *, gamma, lam, coef):
    """Backwards: δ_t + γλ A_{t+1}, from the figures that the tokens show."""
    advantages, after, next_value = [], 0.0, 0.0
    for token in reversed(text.tokens):
        delta = token.reward - coef * (token.kl or 0) + gamma * next_value - (token.value or 0)
        after = delta + gamma * lam * after
        next_value = token.value or 0
        advantages.append(after)
    return advantages[::-1]


def shown(text, measure):
    return [getattr(token, measure) for token in text.tokens]


@dense
def one_for_every_a(completion_ids):
    return [[float(token == 2) for token in ids] for ids in completion_ids]


@pytest.mark.parametrize("reward", [letters, one_for_every_a])
@pytest.mark.parametrize("greedy", [False, True])
def test_advantages_are_gae_over_the_charged_rewards(reward, greedy):
    agent = moved_agent(gamma=0.9, gae_lambda=0.8, kl_coef_per_sequence=0.3)
    texts = credit(agent, make_mdp(reward), num_texts=6, greedy=greedy)
    assert len(texts) == 6
    for text in texts:
        assert shown(text, "advantage") == pytest.approx(gae_by_hand(text, gamma=0.9, lam=0.8, coef=0.3), abs=1e-5)
        assert shown(text, "advantage") != pytest.approx(gae_by_hand(text, gamma=0.9, lam=0.8, coef=0), abs=1e-5)
        assert sum(shown(text, "reward")) == pytest.approx(text.score, abs=1e-6)
        assert text.kl_coef_per_sequence == 0.3
    assert any(len(text.tokens) > 2 for text in texts)


def test_the_figures_are_those_of_the_model():
    agent = moved_agent()
    for text in credit(agent, make_mdp(), num_texts=3):
        ids = agent.tokenizer.hf.convert_tokens_to_ids([token.text.strip() for token in text.tokens])
        prompt = agent.tokenizer.encode_prompt(text.prompt).tolist()
        with torch.no_grad():
            every = torch.log_softmax(agent.policy.model(torch.tensor([prompt + ids])).logits[0], -1)
        every = every[len(prompt) - 1 : -1]
        assert shown(text, "log_prob") == pytest.approx(every[range(len(ids)), ids].tolist(), abs=1e-5)
        assert shown(text, "probability") == pytest.approx(np.exp(shown(text, "log_prob")))
        assert shown(text, "entropy") == pytest.approx((-every * every.exp()).sum(-1).tolist(), abs=1e-5)
        assert text.score == pytest.approx(letters([text.completion], [text.prompt])[0], abs=1e-6)
        assert text.components == pytest.approx({"letters": text.score}, abs=1e-6)


def test_the_texts_and_their_kl_are_those_of_evaluate():
    agent = moved_agent()
    found = evaluate(agent, make_mdp(), num_prompts=4, seed=5)
    texts = credit(agent, make_mdp(), num_texts=4, seed=5)
    assert [text.completion for text in texts] == [sample.completion for sample in found.samples]
    assert np.mean([text.kl for text in texts]) == pytest.approx(found.kl_per_sequence, abs=1e-5)
    assert found.kl_per_sequence != pytest.approx(0, abs=1e-2)
    assert texts == credit(agent, make_mdp(), num_texts=4, seed=5)
    assert texts != credit(agent, make_mdp(), num_texts=4, seed=6)


def test_other_samples_of_a_prompt_are_its_baseline():
    agent = moved_agent(samples_per_prompt=3, kl_coef_per_sequence=0.0)
    first, again = (credit(agent, make_mdp(), prompt_indices=[1, 4], greedy=greedy) for greedy in (False, True))
    assert [text.prompt for text in first] == [PROMPTS[1], PROMPTS[4]]
    assert [text.completion for text in again] == agent.generate([PROMPTS[1], PROMPTS[4]], greedy=True)
    for text in first + again:
        last = text.tokens[-1]
        assert last.advantage == pytest.approx(last.reward - text.others_score - last.value, abs=1e-5)
    assert {text.others_score for text in again} != {text.score for text in again}  # drawn, not greedy again


def test_without_critic_and_reference_the_reward_to_go_is_left():
    env = make_env(reward=one_for_every_a)
    for text in credit(PlainModel(gpt2_config(), env, seed=1, device="cpu"), make_mdp(one_for_every_a)):
        assert shown(text, "value") == shown(text, "kl") == [None] * len(text.tokens)
        to_go = np.cumsum(shown(text, "reward")[::-1])[::-1]
        assert shown(text, "advantage") == pytest.approx(to_go.tolist())
        assert text.kl is None
        assert text.others_score is None


@pytest.mark.parametrize("baseline", ["moving_average", "self_critical"])
def test_the_agent_stays_as_it_is_whatever_its_baseline_remembers_or_plays(baseline):
    agent = REINFORCE(gpt2_config(), make_env(), baseline=baseline, seed=1, device="cpu", samples_per_prompt=1)
    before, state = weights(agent.policy), agent.collector.state()
    held_out = make_mdp(prompts=["f f", "a c"])
    (text, _) = credit(agent, held_out)
    if baseline == "self_critical":  # the greedy answers to these prompts, not to those with the same numbers
        (greedy, _) = evaluate(agent, held_out, greedy=True).samples
        expected = text.score - greedy.score
        kl_to_go = np.cumsum(shown(text, "kl")[::-1])[::-1]
        assert shown(text, "advantage") == pytest.approx((expected - 0.02 * kl_to_go).tolist(), abs=1e-5)
    assert agent.moving_average is None
    assert agent.num_timesteps == 0
    np.testing.assert_equal(agent.collector.state(), state)
    assert all(torch.equal(before[name], value) for name, value in weights(agent.policy).items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_texts": 0}, "num_texts=0"),
        ({"prompt_indices": []}, "names no prompt"),
        ({"prompt_indices": [0, 6]}, "names prompt 6, the split has 0 to 5"),
        ({"prompt_indices": [-1]}, "names prompt -1"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        credit(make_agent(), make_mdp(), **arguments)


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="agent's tokenizer"):
        credit(make_agent(), make_mdp(words="a b c d e f g h"))


# --- tokens ---------------------------------------------------------------------------------------------


def test_pieces_join_to_the_text_and_wait_for_whole_characters():
    tokenizer = TextTokenizer(train_tokenizer(["the cat sat on the mat"], 300))
    text = "the café costs 3€\nsat"
    ids = tokenizer.encode_completion("", text).tolist()
    pieces = token_texts(tokenizer, ids)
    assert "".join(pieces) == text + "<|eos|>"
    assert pieces[-1] == "<|eos|>"
    at = pieces.index("€")
    assert pieces[at - 2 : at] == ["", ""]
    assert token_texts(tokenizer, ids[: ids.index(ids[at])])[-1].endswith("\ufffd")  # a character never completed


def test_words_keep_the_space_before_them():
    assert token_texts(make_mdp().tokenizer, [2, 3, 1]) == ["a", " b", " <eos>"]


# --- the page -------------------------------------------------------------------------------------------

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x.png onerror=\"f()\">\x1b[31m"


def make_text(*pieces, eos="<eos>", **changes):
    """Tokens whose advantages are +1, −1/2, +1/3, …; the last one is special."""
    signed = [(-1) ** t / (t + 1) for t in range(len(pieces) + 1)]
    tokens = [TokenCredit(p, False, -0.5, 1.0, 0.25, 0.0, 0.125, a) for p, a in zip(pieces, signed, strict=False)]
    tokens.append(TokenCredit(eos, True, -0.1, 0.2, 0.5, 2.0, -0.0625, signed[-1]))
    text = TextCredit("p", "".join(pieces), "r", "eos", 2.0, {"letters": 2.0}, tuple(tokens), 0.02, None)
    return dataclasses.replace(text, **changes)


class Elements(HTMLParser):
    """The page as a browser reads it: its elements with attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def read_page(*texts):
    return Elements(credit_page(texts, title="Credit", about="A test."))


def test_the_page_shows_every_token_with_its_figures():
    page = read_page(make_text("the", " cat"))
    spans = [attrs for tag, attrs in page.elements if tag == "span" and "title" in attrs]
    assert [attrs["class"] for attrs in spans] == ["up", "down", "up special"]
    assert [attrs["style"] for attrs in spans] == ["--x:1.000", "--x:0.500", "--x:0.333"]
    title = "‘ cat’\nadvantage −0.500 reward\nvalue +0.250 reward\nreward 0 reward\nKL +0.125 nats\nprobability 0.607"
    assert spans[1]["title"].startswith(title)
    for words in ("the cat<eos>", "·cat", "reward 2.000", "KL 0.19 nats", "ended by EOS", "less 0.02 for each nat"):
        assert words in page.text
    bars = [attrs for tag, attrs in page.elements if tag == "b"]
    assert len(bars) == 4 * 3


def test_what_a_model_wrote_is_never_interpreted():
    hostile = make_text(HOSTILE, eos=HOSTILE, prompt=HOSTILE, reference=HOSTILE, components={HOSTILE: 1.0, "b": 1.0})
    page, harmless = read_page(hostile), read_page(make_text("a", components={"a": 1.0, "b": 1.0}))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert {name for _, attrs in page.elements for name in attrs} == {
        name for _, attrs in harmless.elements for name in attrs
    }
    assert page.text.count("alert('x')") >= 5
    (policy,) = (attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_page_asks_nobody_for_anything():
    page = credit_page([make_text("a")], title="t", about="a")
    assert "http" not in page.replace("http-equiv", "")
    assert not {"src", "href"} & {name for _, attrs in Elements(page).elements for name in attrs}
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_leaves_out_what_there_is_not():
    bare = make_text("a", kl_coef_per_sequence=0.0, reference=None, stop_reason="length")
    bare = dataclasses.replace(
        bare, tokens=tuple(dataclasses.replace(token, value=None, kl=None) for token in bare.tokens)
    )
    text = read_page(bare).text
    assert "There is no critic" in text
    assert "cut by the length cap" in text
    for word in ("nat of KL", "log π_ref", "Reference", "what the critic expects"):
        assert word not in text
        assert word in read_page(make_text("a")).text


def test_all_alike_advantages_of_zero_have_a_scale():
    still = make_text("a")
    still = dataclasses.replace(
        still, tokens=tuple(dataclasses.replace(token, advantage=0.0) for token in still.tokens)
    )
    assert "--x:0.000" in credit_page([still], title="t", about="a")


def test_the_terminal_gets_tokens_with_advantages_and_no_control_characters():
    lines = dict(credit_lines(make_text("the", " cat", "", "\x1b[31m\n")).items)
    assert lines["Advantages"] == "the(+1.00) ·cat(-0.50) ◌(+0.33) \ufffd[31m↵(-0.25) <eos>(+0.20)"
    assert lines["Totals"] == "reward 2.000, KL 0.44 nats, ended by EOS"
    assert visible(make_text("").tokens[0]) == "◌"
