import itertools
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.drawings import _PALETTE, Pens, chance, draw_curves, inline_svg, on_one_grid, strip
from benchmarks.statistics import Estimate
from tests.benchmarks.made_up import cell, line

HOSTILE = "<script>'\"&|"

# --- colours ----------------------------------------------------------------------------------------------

PAPERS = ("#ffffff", "#14171f")
# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour):
    coded = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2's."""
    dark, light = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def cielab(rgb):
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratios = to_xyz @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours):
    """The least distance of two colours, in the eyes that see it least."""
    return min(
        np.linalg.norm(cielab(vision @ linear(one)) - cielab(vision @ linear(other)))
        for vision in map(np.array, VISIONS.values())
        for one, other in itertools.combinations(colours, 2)
    )


@pytest.mark.parametrize("shade", [0, 1])
def test_colours_are_seen_and_told_apart_by_everyone(shade):
    colours = {name: shades[shade] for name, shades in _PALETTE.items()}
    assert min(contrast(colour, PAPERS[shade]) for colour in colours.values()) >= 3
    assert nearest(colour for name, colour in colours.items() if name not in ("supervised", "best_of_n")) >= 23
    assert nearest(["#d62728", "#2ca02c"]) < 23  # must fail: red and green, as many palettes begin


def test_a_peer_has_its_algorithms_colour_and_lines_of_its_own():
    pens = Pens(["ppo", "sb3_ppo", "trl_ppo", "reinforce", "trl_rloo", "expert_iteration"])
    assert pens.colour("ppo") == pens.colour("sb3_ppo") == pens.colour("trl_ppo")
    assert pens.colour("trl_rloo") == pens.colour("reinforce") != pens.colour("ppo")
    dashes = [pens.dashes(name) for name in ("ppo", "sb3_ppo", "trl_ppo", "expert_iteration")]
    assert len(set(dashes)) == 4
    assert dashes[0] == ()


def test_contenders_that_nobody_knows_get_colours_that_are_free():
    names = [*list(_PALETTE)[:8], "mine", "yours"]
    pens = Pens(names)
    assert len({pens.colour(name) for name in names}) == len(names)
    crowd = [f"contender {number}" for number in range(40)]
    assert len(Pens(crowd).legend(crowd)) > 0  # more than there are colours


# --- curves -----------------------------------------------------------------------------------------------


def looks(*points):
    return [{"tokens": at, "score": score} for at, score in points]


def test_curves_are_read_off_at_the_same_points():
    xs, values = on_one_grid([looks((0, 0), (10, 1)), looks((0, 1), (4, 1), (8, 0))], "tokens", "score")
    assert (xs[0], xs[-1]) == (0, 8)  # where the shortest ends
    assert values[0] == pytest.approx(xs / 10)
    assert values[1] == pytest.approx(np.clip((8 - xs) / 4, 0, 1))


def test_on_a_logarithmic_axis_curves_begin_at_the_second_look():
    curves = [looks((0.01, 0), (1, 1), (100, 1)), looks((0, 0), (2, 1), (100, 1))]
    xs, values = on_one_grid(curves, "tokens", "score", logarithmic=True)
    assert (xs[0], xs[-1]) == pytest.approx((2, 100))
    assert np.diff(np.log(xs)) == pytest.approx(np.log(50) / (len(xs) - 1))
    assert values == pytest.approx(1)
    at_once = on_one_grid([looks((0, 0), (0, 1))], "tokens", "score", logarithmic=True)
    assert np.isfinite(at_once[0]).all()


@pytest.mark.parametrize("over", ["tokens", "cpu_seconds"])
def test_a_picture_of_curves(over):
    curves = {"ppo": cell(0.5, 0.8), "trl_ppo": [line(normalised=0.3)]}
    pens = Pens([*curves, "supervised"])
    svg = draw_curves(curves, {"supervised": 0.4}, pens, over=over, label="CPU s", name="one")
    assert svg.startswith("<svg viewBox=")
    assert svg.endswith("</svg>")
    assert "normalised score" in svg
    assert "http" not in svg
    for name in (*curves, "supervised"):
        assert f"stroke: {pens.variable(name)}" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)  # every colour is the page's


def test_scores_without_an_optimum_are_drawn_too():
    free = [line(normalised=None), line(seed=1, normalised=None)]
    svg = draw_curves({"ppo": free}, {}, Pens(["ppo"]), over="tokens", label="tokens", name="one")
    assert ">score<" in svg


def test_the_ids_of_two_pictures_differ():
    def ids(name):
        figure = Figure()
        figure.subplots().plot([0, 1], [0, 1], marker="o")
        svg = inline_svg(figure, "a line", name)
        for used in re.findall(r'(?:href="|url\()#([^")]+)', svg):
            assert f'id="{used}"' in svg
        return set(re.findall(r'id="([^"]+)"', svg))

    assert ids("one")
    assert not ids("one") & ids("two")


def test_nothing_written_in_a_picture_is_interpreted():
    figure = Figure()
    figure.subplots().set_title(HOSTILE)
    assert "<script" not in inline_svg(figure, HOSTILE, "one")
    assert "<script" not in Pens([HOSTILE]).legend([HOSTILE])
    assert "<script" not in chance(HOSTILE, HOSTILE, 0.2)


# --- pieces of tables -------------------------------------------------------------------------------------


def test_a_strip_shows_where_the_interval_lies():
    svg = strip(Estimate(0.5, (0.25, 0.75)), 0, 1, "var(--c0)")
    assert 'd="M32.0 8H88.0"' in svg
    assert 'cx="60.0"' in svg
    assert 'cx="116.0"' in strip(Estimate(9.0), 0, 1, "red")  # never outside
    assert 'cx="4.0"' in strip(Estimate(2.0), 2, 2, "red")


def test_a_chance_is_coloured_by_who_is_better():
    assert "var(--better) 55%" in chance("1", "", 1.0)
    assert "var(--worse) 55%" in chance("0", "", 0.0)
    assert "0%" in chance("½", "", 0.5)
