"""The HTML page, the text for the terminal and the charts: what they hold, their size, and that they load nothing."""

import base64
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from docs.make_heads_picture import PICTURE, picture
from llama3 import Llama
from llama3.inspect import summary, svg
from llama3.inspect.as_json import as_dict
from llama3.inspect.lens import Lens
from llama3.inspect.page import all_but_attention, page, page_data
from llama3.inspect.run import Inspection, inspect


def test_the_page_names_no_other_host(seen: Inspection):
    html = page(seen)
    assert set(re.findall(r"https?://[\w.]+", html)) == {"http://www.w3.org"}  # the namespace of SVG
    assert not re.search(r"<(img|iframe|link rel=.stylesheet)|src=|@import|url\(", html)
    assert "default-src 'none'" in html


def test_the_data_of_the_page_are_those_of_the_inspection(seen: Inspection):
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page(seen), re.S)[1])
    T, head = len(seen.tokens), data["heads"].index([0, 1])
    triangle = np.frombuffer(base64.b64decode(data["attention"]), np.uint8).reshape(16, T * (T + 1) // 2)
    row = seen.n_prompt - 1
    found = triangle[head, row * (row + 1) // 2 :][: row + 1] / 255
    np.testing.assert_allclose(found, seen.attention[0, 1, row, : row + 1], atol=1 / 510 + 1e-6)
    assert data["first"] == [0, 1] and data["answer"] == seen.answer.text
    assert [text for _, text, *_ in data["tokens"]] == [token.text for token in seen.tokens]


def test_a_token_cannot_end_the_script(demo: Llama):
    seen = inspect(demo, [{"role": "user", "content": "</script><img src=x>"}], temperature=0, max_tokens=2)
    assert page(seen).count("</script>") == 2


def test_a_page_of_200_tokens_has_at_most_3_mb(demo: Llama):
    seen = inspect(demo, [7] * 200, temperature=0, max_tokens=10)
    assert len(page(seen).encode()) <= 3_000_000


def test_so_has_one_of_a_model_with_80_layers_and_the_vocabulary_of_llama_3(seen: Inspection):
    layers, heads, T = 80, 64, 200
    random, points = np.random.default_rng(0), 2 * layers + 1
    tokens = random.choice(128_256, 20_000, replace=False)[random.integers(0, 20_000, (points, T, 5))]
    shares = random.random((points, T, 5), np.float32)
    large = replace(
        seen,
        config=replace(seen.config, n_layers=layers, n_heads=heads),
        tokens=(seen.tokens * T)[:T],
        attention=np.broadcast_to(np.tri(T, dtype=np.float32), (layers, heads, T, T)),
        lens=Lens([f"layers.{i}" for i in range(points)], tokens, shares, shares[:, :, 0]),
        norms=random.random((points, T), np.float32),
        vocabulary={int(token): f" token{token}" for token in {*tokens.ravel(), *seen.vocabulary}},
    )
    assert 2_500_000 < len(page(large).encode()) <= 3_000_000


def test_of_a_model_with_many_heads_the_page_holds_those_asked_for_and_says_so(seen: Inspection, monkeypatch):
    T = len(seen.tokens)
    rest = len(json.dumps(all_but_attention(seen, [(2, 3)])))
    monkeypatch.setattr("llama3.inspect.page.DATA_BYTES", rest + 4 * T * (T + 1) // 2)  # base64 adds a third
    data = page_data(seen, [(2, 3)])
    assert len(data["heads"]) == 3 and [2, 3] in data["heads"] and data["headCount"] == 16


def test_the_json_has_no_nan_and_the_weights_of_the_heads_asked_for(seen: Inspection):
    found = json.loads(json.dumps(as_dict(seen, [(0, 1)]), allow_nan=False))
    assert found["attention"]["0.1"][seen.n_prompt - 1][8] == pytest.approx(0.90, abs=0.005)
    assert found["without"][0]["parts"] == ["0.1"] and found["steps"][0]["text"] == "R"
    assert found["lens"]["layers.3"][-1]["next"] is None


def test_the_summary_fits_80_columns_and_shows_the_facts(seen: Inspection, demo: Llama):
    strange = inspect(demo, [{"role": "user", "content": "日本語 \x1b[31m ﷽"}], temperature=2, top_p=0.9, seed=1)
    for one in (seen, strange):
        sections = [*summary.summary(one), summary.lens(one), summary.attention(one, (0, 1)), summary.without(one)]
        text = "\n".join(line for heading, lines in sections for line in (heading, *lines))
        assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
        if one is seen:
            assert re.search(r"0\.1 +' RoPE' +\.90", text) and re.search(r"'ary' +1\.00", text)
            assert "without 0.1" in text and "A large language model" in text


@pytest.mark.parametrize(
    "chart",
    [
        svg.heat_map(np.array([[1, np.nan], [-0.5, 0]]), ["a<b", "c"], ["x", "y"], "Title & all", digits=1),
        svg.heat_map(np.zeros((0, 0))),
        svg.bars([0.5, -0.1, 0], ["one", "two", "three"], "Bars", form=".1%"),
        svg.bars([], []),
        svg.lines({"first": [1, 10, 100], "last": [2.0]}, ["a", "b", "c"], "Lines", log=True),
        svg.lines({"flat": [3, 3]}),
    ],
)
def test_a_chart_is_well_formed_and_loads_nothing(chart: str):
    root = ET.fromstring(chart)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.get("width")) > 0
    assert "nan" not in chart and "script" not in chart and chart.count("http") == 1
    assert "prefers-color-scheme:dark" in chart


def test_a_heat_map_shades_by_the_value_and_names_it():
    root = ET.fromstring(svg.heat_map(np.array([[0.25, 1.0]]), [" RoPE"], ["a", "b"]))
    cells = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("fill-opacity")]
    assert [float(cell.get("fill-opacity")) for cell in cells] == [0.25, 1.0]
    assert [cell[0].text for cell in cells] == ["0.25: RoPE a", "1: RoPE b"]


def test_the_picture_of_the_docs_is_the_one_that_its_script_draws():
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run: python -m docs.make_heads_picture"


def test_a_picture_for_a_paper(seen: Inspection):
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    from llama3.inspect.figure import draw

    assert draw(seen, [(0, 1)], "png").startswith(b"\x89PNG")
    assert b"<svg" in draw(seen, [], "svg")
