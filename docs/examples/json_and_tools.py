"""JSON that a schema accepts, and a tool that the model calls. It needs the extra `json`: pip install '.[json]'.

python docs/examples/json_and_tools.py
"""

import json
from pathlib import Path

from llama3 import Llama
from llama3.tools import read_calls

HERE = Path(__file__).parent


def get_weather(city: str) -> str:
    return json.dumps({"city": city, "sky": "clear"})


def main() -> None:
    llama = Llama.load()

    # A JSON Schema: what it forbids cannot be drawn.
    schema = json.loads((HERE.parent / "answer.json").read_text())
    question = [{"role": "user", "content": "What is the KV cache?"}]
    answer = json.loads(llama.chat(question, json_schema=schema, temperature=0).text)
    print(answer["subject"], "->", answer["summary"])

    # Tools: the answer is text, or calls whose arguments fit the tool's schema.
    tools = json.loads((HERE.parent / "weather.json").read_text())
    for question in ("What is the weather in Paris?", "What is RoPE?"):
        text = llama.chat([{"role": "user", "content": question}], tools=tools, temperature=0).text
        calls = read_calls(text)
        for call in calls:
            print(f"{question} -> {call.name}({call.arguments}) = {get_weather(**call.arguments)}")
        if not calls:
            print(f"{question} -> {text}")

    # tool_choice: "auto", "none", "required", or the name of the tool to call.
    cold = [{"role": "user", "content": "Is it cold in Oslo?"}]
    text = llama.chat(cold, tools=tools, tool_choice="get_weather", temperature=0).text
    print("must call:", read_calls(text))


if __name__ == "__main__":
    main()
