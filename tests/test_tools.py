"""Tools in a dialogue: how the calls of its history are written into the prompt, and which calls an answer may hold."""

import itertools
import json

import pytest
from llama_models.datatypes import RawMessage
from llama_models.llama3.chat_format import ChatFormat

from llama3 import Llama
from llama3.chat import encode_dialog
from llama3.errors import ContractError, RequestError
from llama3.tools import Call, prepare, read_calls, read_tools, render_message, render_messages
from llama3.workers_ai import encode_prompt, start_generation, validate
from tests import real_vocabulary as real

ARGUMENTS = [{}, {"city": "Paris"}, {"q": 'é "x" \u2028 <|eot_id|>', "n": [1, 2.5, None, {"deep": {}}]}]
TEXTS = ["", None, "Let me look.", "  Two words \n"]
USER = {"role": "user", "content": "What is the weather?"}
RESULT = {"role": "tool", "name": "f", "tool_call_id": "call_7", "content": "12 degrees"}
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama.load()


def forms(name, arguments):
    """One call in each form that clients send: OpenAI's and Cloudflare's, with arguments as an object or as text."""
    writings = [arguments, json.dumps(arguments), json.dumps(arguments, indent=2, ensure_ascii=False)]
    writings += [None, "", " ", "null"] if not arguments else []
    for writing in writings:
        yield {"name": name, "arguments": writing}
        yield {"id": "call_7", "type": "function", "function": {"name": name, "arguments": writing}}
    if not arguments:
        yield {"name": name}


def written(name, arguments):
    """Meta's format, without white space, as the grammar makes the model write it."""
    return f'{{"name":"{name}","parameters":{json.dumps(arguments, separators=(",", ":"), ensure_ascii=False)}}}'


def ids_by_hand(llama, turns):
    """A prompt put together from Meta's description, header by header."""
    special, encode = llama.tokenizer.special_id, llama.tokenizer.encode
    start, end, eot = special("<|start_header_id|>"), special("<|end_header_id|>"), special("<|eot_id|>")
    ids = [special("<|begin_of_text|>")]
    for role, parts in (*turns, ("assistant", None)):
        ids += [start, *encode(role), end, *encode("\n\n")]
        ids += [] if parts is None else [*(id for part in parts for id in encode(part)), eot]
    return ids


def cases():
    for arguments, text in itertools.product(ARGUMENTS, TEXTS):
        for call in forms("f", arguments):
            parts = [f"{text.strip()}\n\n"] if text and text.strip() else []
            yield {"role": "assistant", "content": text, "tool_calls": [call]}, [*parts, written("f", arguments)]
    two = [next(forms("f", ARGUMENTS[1])), next(forms("g", {}))]
    both = f"{written('f', ARGUMENTS[1])}; {written('g', {})}"
    yield {"role": "assistant", "content": "Both.", "tool_calls": two}, ["Both.\n\n", both]
    yield {"role": "assistant", "tool_calls": two}, [both]


def test_a_history_with_calls_has_metas_ids_in_every_form_on_every_way(llama):
    """The input object, the Python API, and the messages that `prepare` returns give the same prompt."""
    for message, parts in cases():
        messages = [{"role": "developer", "content": "Be brief."}, USER, message, RESULT]
        turns = [
            ("system", ["Be brief."]),
            ("user", [USER["content"]]),
            ("assistant", parts),
            ("ipython", ["12 degrees"]),
        ]
        expected = ids_by_hand(llama, turns)
        assert llama.encode_chat(messages) == expected, message
        assert encode_prompt(llama, validate({"messages": messages}), "auto") == (expected, None)
        offered, _ = prepare([TOOL], messages)
        turns[1] = ("user", [offered[1]["content"]])
        expected = ids_by_hand(llama, turns)
        assert llama.encode_chat(offered) == expected
        assert encode_prompt(llama, validate({"messages": messages, "tools": [TOOL]}), "auto")[0] == expected


def test_a_history_with_calls_has_the_ids_of_metas_own_code():
    """The package llama-models encodes the text in front of a call and the call one by one, and so do we."""
    meta, tokenizer = ChatFormat(real.meta()), real.tokenizer(True)
    for message, parts in cases():
        messages = [{"role": "system", "content": "Be brief."}, USER, message, RESULT]
        expected = [
            RawMessage(role=m["role"], content="".join(parts) if m is message else m["content"]) for m in messages
        ]
        ids = encode_dialog(tokenizer, render_messages(messages))
        assert ids == meta.encode_dialog_prompt(expected).tokens
        tokens = [token for part in parts for token in tokenizer.encode(part)]
        assert encode_dialog(tokenizer, render_messages([message]))[5:-5] == tokens


def test_a_call_in_the_history_reads_as_the_call_that_it_is():
    for arguments in ARGUMENTS:
        for call in forms("f", arguments):
            found = render_message({"role": "assistant", "content": None, "tool_calls": [call, call]})
            assert read_calls(found["content"]) == [Call("f", arguments)] * 2


def test_calls_that_a_client_sends_as_text_and_as_data_stand_in_the_prompt_once():
    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": "{}"}]
    text = render_message({"role": "assistant", "tool_calls": calls})["content"]
    for content in (text, '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}'):
        assert render_message({"role": "assistant", "content": content, "tool_calls": calls})["content"] == text
    other = render_message({"role": "assistant", "content": written("f", {"a": 2}), "tool_calls": calls})["content"]
    assert other == f"{written('f', {'a': 2})}\n\n{text}"


@pytest.mark.parametrize("calls", [None, [], ()])
@pytest.mark.parametrize("content", ["", "text"])
def test_a_message_without_calls_stays_as_it_is(calls, content):
    for role in ("assistant", "user", "tool", "critic"):
        message = {"role": role, "content": content}
        assert render_message({**message, "tool_calls": calls, "name": "x"}) == message


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        (7, "tool_calls is int; expected a list"),
        ({"name": "f"}, "tool_calls is dict; expected a list"),
        ([7], "tool_calls[0] is int; expected an object"),
        ([{"name": "f"}, {"function": "g"}], "tool_calls[1] is str; expected an object"),
        ([{"arguments": {}}], "tool_calls[0]: name is None; expected text"),
        ([{"name": ""}], "tool_calls[0]: name is ''"),
        ([{"name": "f", "arguments": [1]}], "tool_calls[0]: arguments are not a JSON object: found list"),
        ([{"name": "f", "arguments": '{"a":'}], "tool_calls[0]: arguments are not a JSON object"),
        ([{"name": "f", "arguments": '{"a":1e999}'}], "too large for a number"),
        ([{"name": "f", "arguments": {"a": float("nan")}}], "not a JSON object"),
        ([{"name": "f", "arguments": {"a": {1}}}], "not a JSON object"),
    ],
)
def test_calls_that_cannot_be_read_are_refused_by_their_place(llama, calls, says):
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(RequestError) as caught:
        llama.encode_chat(messages)
    assert str(caught.value).startswith("messages[1]: ") and says in str(caught.value)
    with pytest.raises(ContractError) as refused:
        validate({"messages": messages})
    assert refused.value.code == 5006 and "'/messages/1': " in str(refused.value) and says in str(refused.value)


@pytest.mark.parametrize("tools", [[], ()])
def test_a_call_cannot_be_demanded_without_tools(llama, tools):
    for choice in ("required", "f"):
        with pytest.raises(RequestError, match=f"tool_choice is '{choice}', but there are no tools"):
            prepare(tools, [USER], choice)
        with pytest.raises(RequestError, match="no tools"):
            llama.chat([USER], tools=tools, tool_choice=choice)
        for inputs in ({"messages": [USER]}, {"messages": [USER], "tools": list(tools)}, {"prompt": "?"}):
            with pytest.raises(ContractError, match="no tools") as caught:
                start_generation(llama, validate(inputs), choice)
            assert caught.value.code == 5006
    for choice in ("auto", "none"):
        assert prepare(tools, [USER], choice) == ([USER], None)


def test_a_demanded_call_and_json_mode_exclude_one_another(llama):
    parameters = validate({"messages": [USER], "tools": [TOOL], "response_format": {"type": "json_object"}})
    for choice in ("required", "f"):
        with pytest.raises(ContractError, match="response_format asks for JSON in place of a call"):
            start_generation(llama, parameters, choice)


def test_one_call_or_more_as_the_request_says(llama):
    """The grammar is that of `prepare`, and without parallel calls the demo calls once."""
    grammars = {parallel: prepare([TOOL], [USER], "required", parallel)[1] for parallel in (True, False)}
    parameters = validate({"messages": [USER], "tools": [TOOL], "max_tokens": 60, "temperature": 0})
    for parallel, grammar in grammars.items():
        assert encode_prompt(llama, parameters, "required", parallel)[1] == grammar
        answer = start_generation(llama, parameters, "required", parallel).completion()
        assert answer.finish_reason == "length" or len(read_calls(answer.text)) <= (9 if parallel else 1)
    assert grammars[True] != grammars[False]


@pytest.mark.parametrize("key", ["description", "parameters"])
@pytest.mark.parametrize("value", [0, False, [], 7, "", None, {}])
def test_an_empty_value_of_the_wrong_type_is_refused_as_a_full_one_is(key, value):
    if value is None or isinstance(value, str if key == "description" else dict):
        assert read_tools([{"name": "f", key: value}]) == [
            {"name": "f", "description": "", "parameters": {"type": "object"}}
        ]
    else:
        with pytest.raises(RequestError, match="expected description to be text, and parameters to be a JSON Schema"):
            read_tools([{"name": "f", key: value}])


@pytest.mark.parametrize("text", ["", "words", " {", "[1]"])
def test_text_is_not_read_as_a_call(text):
    assert read_calls(text) == []


@pytest.mark.parametrize(
    "deep",
    [
        '{"name":"f","parameters":' + '{"a":' * 100_000,
        '{"name":"f","parameters":' + '{"a":' * 5_000 + "1" + "}" * 5_001,
    ],
)
def test_text_that_is_nested_without_end_is_an_error_and_no_crash(llama, deep):
    with pytest.raises(ValueError):
        read_calls(deep)
    message = {"role": "assistant", "content": deep, "tool_calls": [{"name": "f"}]}
    assert render_message(message)["content"] == f'{deep}\n\n{{"name":"f","parameters":{{}}}}'
    with pytest.raises(RequestError, match="not a JSON object"):
        render_message({"role": "assistant", "tool_calls": [{"name": "f", "arguments": deep}]})
    value: dict = {}
    for _ in range(5_000):
        value = {"a": value}
    with pytest.raises(RequestError, match="not a JSON object"):
        render_message({"role": "assistant", "tool_calls": [{"name": "f", "arguments": value}]})
    with pytest.raises(RequestError, match="the tools are not JSON"):
        prepare([{"name": "f", "parameters": value}], [USER])


def test_several_calls_are_read_and_malformed_ones_are_refused():
    one = '{"name":"a","parameters":{"x":"; {"}}'
    assert [call.name for call in read_calls(f"{one}; {one}")] == ["a", "a"]
    assert read_calls(one)[0].arguments == {"x": "; {"}
    infinite, unnamed = '{"name":"a","parameters":{"x":1e999}}', '{"name":1,"parameters":{}}'
    for text in (one[:-1], one + ", " + one, one + "x", one + "; ", infinite, unnamed, '{"a":1}', "{}"):
        with pytest.raises(ValueError):
            read_calls(text)
