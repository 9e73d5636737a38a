"""The page of `llama3 inspect --html`, and the server's /inspect, in Chromium."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from llama3 import Llama
from llama3.inspect.page import page as page_of
from llama3.inspect.run import inspect
from tests.server.running import RunningServer

ASK = [{"role": "user", "content": "What is RoPE?"}]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page; at the end it must have raised no error and sent no request to another host."""
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    hosts: set[str] = set()
    yield page
    context.close()
    assert [text for text in errors if "400 (Bad Request)" not in text] == []
    assert all(host == "" or host.startswith(("127.0.0.1:", "image")) for host in hosts), hosts


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the demo on "What is RoPE?", with each part switched off once."""
    path = tmp_path_factory.mktemp("inspect") / "page.html"
    seen = inspect(Llama.load(), ASK, each=True, temperature=0, max_tokens=24)
    path.write_text(page_of(seen), encoding="utf-8")
    return path


def test_a_chosen_token_shows_its_lens_its_rivals_and_what_each_head_looks_at(page: Page, file: Path):
    page.goto(file.as_uri())
    assert page.locator(".token").count() == 17 + 24
    expect(page.locator("#head")).to_have_value("0.1")
    expect(page.locator("#choice-note")).to_contain_text('"R" follows. The model gave it 0.582')
    page.locator(".token", has_text=" rot").first.click()
    expect(page.locator("#facts")).to_contain_text('Position 20: " rot", id 943')
    lens = page.locator("#lens tr")
    assert '"ates"' in lens.nth(7).inner_text() and '"ary" 1.00' in lens.nth(8).inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#facts")).to_contain_text("Position 21")


def test_pointing_at_a_cell_names_its_weight_and_a_click_chooses_its_head(page: Page, file: Path):
    page.goto(file.as_uri())
    box, cells = page.locator("#heads").bounding_box(), page.evaluate("document.getElementById('heads').cells")
    assert box
    x, y = box["x"] + cells["left"] + 8.5 * cells["cell"], box["y"] + 7.5 * cells["tall"]  # head 1.3, " RoPE"
    page.mouse.move(x, y)
    expect(page.locator("#heads-cell")).to_contain_text('Head 1.3, position 16 "\\n\\n" puts 0.89 on " RoPE" at 8')
    page.mouse.click(x, y)
    expect(page.locator("#head")).to_have_value("1.3")


def test_the_parts_switched_off_are_listed_with_their_answers(page: Page, file: Path):
    page.goto(file.as_uri())
    rows = page.locator("#ablations tr")
    assert rows.count() == 22
    assert "A large language model predicts" in rows.nth(3).inner_text()  # headings, nothing, 0.0, 0.1


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(page: Page, file: Path, width: int):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_of_200_tokens_is_small_and_soon_ready(page: Page, tmp_path: Path):
    seen = inspect(Llama.load(), [7 + i for i in range(200)], temperature=0, max_tokens=10)
    path = tmp_path / "long.html"
    path.write_text(page_of(seen), encoding="utf-8")
    assert path.stat().st_size <= 3_000_000
    page.goto(path.as_uri())
    start = time.perf_counter()
    page.locator(".token").nth(100).click()
    expect(page.locator("#facts")).to_contain_text("Position 100")
    assert time.perf_counter() - start < 30  # a page that hangs; the time itself is no property of the code


def test_the_server_inspects_the_model_that_runs(page: Page):
    with RunningServer("--token", "secret") as server:
        page.goto(f"http://127.0.0.1:{server.port}/inspect")
        page.fill("#token", "secret")
        page.fill("#without", "7.0")
        page.click("#send")
        expect(page.locator("#status")).to_contain_text("there is no layer 7", timeout=60_000)
        page.fill("#without", "0.1")
        page.fill("#temperature", "0")
        page.fill("#max_tokens", "8")
        page.click("#send")
        expect(page.locator("#model")).to_contain_text("demo: 4 layers", timeout=60_000)
        assert page.locator("#ablations tr").nth(2).inner_text().startswith("0.1")
