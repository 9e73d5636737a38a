"""The playground page in Chromium: streaming, stopping, storage, tool calls, and the code that it shows."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.clients.conftest import TOKEN
from tests.server.running import ROOT, RunningServer

EVIL = '<img src=x onerror="document.title=\'hacked\'"> it\'s \\ "quoted" é'
TOOLS = json.loads(Path(ROOT, "docs", "weather.json").read_text())


@pytest.fixture(scope="module")
def open_server() -> Iterator[RunningServer]:
    """A server without a token."""
    with RunningServer("--lora", f"rhyme={ROOT}/weights/rhyme") as running:
        yield running


@pytest.fixture
def page(browser: Browser, open_server: RunningServer) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"http://127.0.0.1:{open_server.port}/")
    expect(page.locator("#model")).to_have_text("@hf/meta-llama/meta-llama-3-8b-instruct")
    yield page
    context.close()
    assert [text for text in errors if "400 (Bad Request)" not in text] == []  # a 400 is shown on the page


def ask(page: Page, text: str, **settings: str) -> None:
    for name, value in settings.items():
        page.locator(f"#{name}").evaluate("(field) => field.closest('details')?.setAttribute('open', '')")
        page.locator(f"#{name}").fill(value)
    page.locator("#message").fill(text)
    page.locator("#message").press("Enter")


def answer(page: Page) -> str:
    """The text of the last answer, once it is complete."""
    expect(page.locator("#send")).to_be_visible(timeout=60_000)
    return page.locator("#dialogue li.assistant .content").last.inner_text()


def test_an_answer_streams_in_and_is_kept_after_a_reload(page: Page):
    ask(page, "What is RoPE?", temperature="0")
    text = answer(page)
    assert "rotary" in text and re.search(
        r"\d+ tokens, \d+ tokens/s, first token after .* finish_reason stop, seed \d+",
        page.inner_text(".stats >> nth=-1"),
    )
    page.reload()
    assert page.locator("#dialogue li").count() == 2 and answer(page) == text
    assert page.locator("#temperature").input_value() == "0"
    page.locator("#clear").click()
    page.reload()
    assert page.locator("#dialogue li").count() == 0


def test_a_stopped_answer_stays_on_the_page(page: Page):
    ask(page, "Go on", temperature="5", max_tokens="1500", seed="14")  # does not stop before max_tokens
    expect(page.locator("#dialogue li.assistant .content")).to_contain_text(re.compile(r"\w{2}"), timeout=60_000)
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped")
    assert answer(page) and page.locator("#dialogue li").count() == 2
    ask(page, "What is RoPE?", temperature="0", max_tokens="9")  # the slot is free again
    assert answer(page)


def test_each_token_shows_its_probability_and_its_alternatives(page: Page):
    ask(page, "What is RoPE?", temperature="0", max_tokens="6")
    text = answer(page)
    page.get_by_role("button", name="Tokens").click()
    tokens = page.locator(".content button")
    assert tokens.count() == 6 and "".join(tokens.all_text_contents()) == text
    tokens.first.click()
    assert page.locator(".alternatives tr").count() == 5 and "%" in page.locator(".alternatives td").nth(1).inner_text()


def test_an_adapter_and_a_schema_are_used(page: Page):
    page.locator("#lora").select_option("rhyme")
    ask(page, "What is RoPE?", temperature="0")
    assert answer(page).startswith("Turn query and key")
    page.locator("#lora").select_option("")
    page.locator("#clear").click()
    schema = {
        "type": "object",
        "properties": {"known": {"type": "boolean"}},
        "required": ["known"],
        "additionalProperties": False,
    }
    ask(page, "RoPE?", schema=json.dumps(schema))
    assert json.loads(answer(page)).keys() == {"known"}


def test_a_tool_call_is_shown_and_the_next_message_is_its_result(page: Page, open_server: RunningServer):
    """The server's response is replaced by a prepared one, so that the call does not depend on the model."""
    call = {
        "index": 0,
        "id": "call_0",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]},
        {
            "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}],
            "usage": {"completion_tokens": 9},
            "seed": 1,
        },
    ]
    sent: list[dict] = []

    def reply(route):
        sent.append(json.loads(route.request.post_data))
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", reply, times=1)
    ask(page, "What is the weather in Paris?", tools=json.dumps(TOOLS))
    assert page.locator(".call").inner_text() == 'get_weather({"city": "Paris"})' or answer(page)
    expect(page.locator(".call")).to_have_text('get_weather({"city": "Paris"})')
    assert sent[0]["tools"] == TOOLS
    page.on("request", lambda request: sent.append(json.loads(request.post_data)) if request.post_data else None)
    ask(page, "12 degrees", temperature="0", max_tokens="5")
    answer(page)
    assert [message["role"] for message in sent[-1]["messages"]] == ["user", "assistant", "tool"]
    assert sent[-1]["messages"][1]["content"] == '{"name":"get_weather","parameters":{"city": "Paris"}}'


def test_messages_are_shown_as_text_never_as_html(page: Page):
    ask(page, EVIL, max_tokens="3", temperature="0")
    answer(page)
    assert page.locator("#dialogue img").count() == 0 and page.title() == "Llama 3"
    assert page.locator("#dialogue li.user .content").inner_text() == EVIL


def test_a_value_out_of_range_is_reported_and_nothing_is_sent(page: Page):
    ask(page, "hi", temperature="9")
    expect(page.locator("#status")).to_have_text("temperature: expected a number from 0 to 5")
    assert page.locator("#dialogue li").count() == 0
    ask(page, "hi", temperature="1", schema='{"not": {}}')
    expect(page.locator("#status")).to_contain_text("(5006)")


def test_the_code_that_the_page_shows_runs(page: Page):
    page.locator("#message").fill(EVIL)
    page.locator("#max_tokens").fill("7")
    page.locator("#temperature").fill("0")
    page.locator("#top_k").fill("40")
    page.locator("#system").fill("Be 'brief'.\nVery.")
    page.locator("#show-code").click()
    answers = {}
    for name, command in (
        ("curl", ["bash", "-c"]),
        ("Python", [sys.executable, "-c"]),
        ("OpenAI", [sys.executable, "-c"]),
    ):
        page.get_by_role("button", name=name, exact=True).click()
        ran = subprocess.run([*command, page.locator("#text").inner_text()], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        answers[name] = (
            json.loads(ran.stdout)["result"]["response"] if name == "curl" else ran.stdout.removesuffix("\n")
        )
    assert answers["curl"] and len(set(answers.values())) == 1
    page.get_by_role("button", name="Worker").click()
    assert "env.AI.run" in page.locator("#text").inner_text()


def test_a_server_with_a_token_serves_the_page_without_it_and_answers_with_it(browser: Browser, server: RunningServer):
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    expect(page.locator("#status")).to_have_text("Authentication error (10000)")
    page.locator("#token").fill(TOKEN)
    ask(page, "What is RoPE?", max_tokens="5", temperature="0")
    assert answer(page)
    page.close()


def test_the_page_loads_nothing_from_other_hosts_and_fits_a_phone(browser: Browser, open_server: RunningServer):
    page = browser.new_page(viewport={"width": 360, "height": 700})
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    reply = page.goto(f"http://127.0.0.1:{open_server.port}/")
    assert reply and "default-src 'none'" in reply.headers["content-security-policy"]
    expect(page.locator("#model")).not_to_be_empty()
    assert all(url.startswith((f"http://127.0.0.1:{open_server.port}/", "data:")) for url in urls)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
