import base64
import hashlib
import json
import math
import re

import numpy as np
import pytest
import torch

from agents.attention.cli import _greedy
from agents.attention.page import CAVEATS, attention_lines, attention_page
from agents.attention.weights import MOST_WEIGHTS, TextAttention, attention, heads, rollout
from agents.cli import main
from tests.agents.conftest import make_policy, word_tokenizer
from tests.agents.test_credit import HOSTILE, Elements
from tests.reward_models import tiny_models as tiny
from textgen_env import TextTokenizer

WORDS = " ".join(f"w{number}" for number in range(38))
IDS = [3, 7, 2, 30, 7, 5]


def attend(family="gpt2", ids=IDS, **options):
    policy = make_policy(family, torch.float32)
    return policy, attention(policy.model, TextTokenizer(word_tokenizer(WORDS)), ids, **options)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_rows_sum_to_one_and_nothing_looks_ahead(family):
    policy, found = attend(family)
    assert found.weights_LHSS.shape == (2, 4, 6, 6)
    assert policy.model.config._attn_implementation == "sdpa"  # as it was
    for rows in (found.weights_LHSS, found.rollout_SS):
        assert rows.sum(-1) == pytest.approx(np.ones(rows.shape[:-1]), abs=1e-5)
        assert np.triu(rows, 1).max() == 0
    assert found.tokens[0] == "w1"


def test_the_first_layers_weights_by_hand():
    """softmax(q k / √d) of GPT-2's first block, from its own weights."""
    policy, found = attend()
    block = policy.model.transformer
    with torch.no_grad():
        hidden = block.wte(torch.tensor(IDS)) + block.wpe(torch.arange(len(IDS)))
        query, key, _ = block.h[0].attn.c_attn(block.h[0].ln_1(hidden)).split(32, dim=-1)
        q_HSD, k_HSD = (part.view(-1, 4, 8).transpose(0, 1) for part in (query, key))
        scores_HSS = q_HSD @ k_HSD.transpose(-1, -2) / math.sqrt(8)
        ahead = torch.ones(6, 6, dtype=torch.bool).triu(1)
        expected = scores_HSS.masked_fill(ahead, -torch.inf).softmax(-1)
    np.testing.assert_allclose(found.weights_LHSS[0], expected, atol=1e-5)


def test_an_adapter_counts():
    pytest.importorskip("peft")
    from agents.adapters import add_lora

    policy, plain = attend()
    adapted = add_lora(policy.model, 4)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.1)
    found = attention(adapted, TextTokenizer(word_tokenizer(WORDS)), IDS)
    assert found.weights_LHSS.sum(-1) == pytest.approx(np.ones((2, 4, 6)), abs=1e-5)
    assert np.abs(found.weights_LHSS - plain.weights_LHSS).max() > 0.01


FIRST = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
SECOND = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], np.float32)


def test_rollout_by_hand():
    """Ã₁ = [1 0 0; ½ ½ 0; 0 ½ ½], Ã₂ = [1 0 0; 0 1 0; ½ 0 ½]: the last layer stands on the left."""
    expected = [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]]
    assert rollout(np.stack([FIRST, SECOND])[:, None]) == pytest.approx(np.array(expected))
    assert rollout(np.stack([SECOND, FIRST])[:, None]) != pytest.approx(np.array(expected))  # must fail: wrong order
    mixed = np.stack([np.stack([FIRST, SECOND])])  # two heads of one layer are averaged
    assert rollout(mixed)[2] == pytest.approx([0.25, 0.25, 0.5])


def by_hand(tokens=("a", " b", " c"), written=0):
    return TextAttention(tuple(tokens), written, np.stack([FIRST, SECOND])[:, None])


def test_what_heads_do():
    first, second = heads(by_hand())
    assert (first.layer, first.head, first.before, first.spread) == (1, 1, 1.0, 1.0)  # tokens 1, 2 look at 0, 1
    assert (first.first, first.itself) == (0.5, 0.0)
    assert (second.itself, second.first, second.before) == (0.5, 0.5, 0.0)
    assert heads(TextAttention(("a",), 0, np.ones((1, 1, 1, 1), np.float32))) == []


def test_too_long_texts_are_refused_with_the_number():
    with pytest.raises(ValueError, match="49 tokens, the model 48 positions"):
        attend(ids=[3] * 49)
    policy = make_policy("gpt2", torch.float32)
    policy.model.config.n_positions = 10_000
    most = int((MOST_WEIGHTS / 8) ** 0.5)
    with pytest.raises(ValueError, match=f"a page can show {most}; shorten"):
        attention(policy.model, TextTokenizer(word_tokenizer(WORDS)), [3] * (most + 1))


# --- the page -------------------------------------------------------------------------------------------


def read(found):
    return Elements(attention_page(found, title="Attention", about="A test."))


def test_the_page_is_readable_without_its_script():
    page = read(by_hand(written=1))
    tokens = [attrs for tag, attrs in page.elements if tag == "span" and "token" in attrs.get("class", "").split()]
    assert [attrs["style"] for attrs in tokens] == ["--x:1.000", "--x:0.500", "--x:0.500"]
    assert tokens[-1]["class"] == "token written from"
    assert "·c looks at a 0.50, ·b 0.25, ·c 0.25" in page.text
    assert "layer 1, head 1: ·b 1.00" in page.text  # the hardest head of the last token
    assert "Jain and Wallace" in page.text
    assert all(caveat in page.text for caveat in CAVEATS)
    (controls,) = (attrs for _, attrs in page.elements if attrs.get("id") == "controls")
    assert "hidden" in controls


def test_the_script_gets_the_weights_as_bytes():
    page = read(by_hand())
    (controls,) = (attrs for _, attrs in page.elements if attrs.get("id") == "controls")
    packed = np.frombuffer(base64.b64decode(controls["data-weights"]), np.uint8).reshape(3, 6) / 255
    rows, columns = np.tril_indices(3)
    expected = np.stack([by_hand().rollout_SS, FIRST, SECOND])[:, rows, columns]
    assert packed == pytest.approx(expected, abs=1 / 255)
    assert len([tag for tag, _ in page.elements if tag == "option"]) == 3


def test_the_policy_allows_this_script_alone():
    page = attention_page(by_hand(), title="t", about="a")
    ((script, _),) = re.findall(r"<script>(.*?)(</script>)", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page
    assert "innerHTML" not in script
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page


def test_what_was_written_is_never_interpreted():
    hostile, harmless = read(by_hand(tokens=(HOSTILE, HOSTILE, HOSTILE))), read(by_hand())
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in harmless.elements]
    assert hostile.text.count("alert('x')") >= 6


def test_the_terminal_gets_a_line_a_token():
    lines = list(attention_lines(by_hand(tokens=("a", " b", "\x1b["))))
    assert lines[2] == "\ufffd[  a 0.50, ·b 0.25, \ufffd[ 0.25"


# --- the command ----------------------------------------------------------------------------------------


def test_greedy_ids_are_the_models_own():
    policy = make_policy("gpt2", torch.float32)
    written = _greedy(policy, IDS, (1,), 4)
    ids = torch.tensor([[*IDS, *written]])
    with torch.no_grad():
        best = policy.model(ids, attention_mask=torch.ones_like(ids)).logits.argmax(-1)[0]
    assert written == best[len(IDS) - 1 : len(IDS) - 1 + len(written)].tolist()
    assert len(written) == 4
    assert _greedy(policy, IDS, (written[-1],), 4) == written[: written.index(written[-1])]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.gpt2().save_pretrained("model")
    tiny.lm_tokenizer().save_pretrained("model")
    assert main(["attention", "model", "--text", "the cat sat", "--new-tokens", "3", "--output", "page.html"]) == 0
    told = capsys.readouterr().out
    assert "2 layers of 2 heads" in told
    assert "looks at" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main(["attention", "model", "--text", "rain " * 100]) == 2
    assert "positions: shorten the text" in capsys.readouterr().err
    assert main(["attention", "model", "--text", "a", "--new-tokens", "-1"]) == 2
    assert json.loads((tmp_path / "model" / "config.json").read_text())["n_layer"] == 2
