"""benchmarks/serving.py, all four parts on the demo with few and short requests: its figures are there and add up."""

from dataclasses import replace

import random_8b
import serving


def test_each_part_measures_what_it_says(monkeypatch):
    for name, value in {"SLOTS": 2, "LONG_PROMPT": 100, "STREAM_TOKENS": 3, "DIALOGUE": 100, "TURNS": 2}.items():
        monkeypatch.setattr(serving, name, value)
    llama = serving.load(None)
    clients = serving.closed_loop(llama, clients=3, least=4)
    arrivals = serving.poisson(llama, per_second=50, n=4)
    for part, requests in ((clients, 6), (arrivals, 4)):
        assert part["requests"] == requests and part["tokens_per_s"] > part["requests_per_s"] > 0
        assert 0 < part["between_tokens_ms"]["p50"] <= part["between_tokens_ms"]["p99"]

    long = serving.long_prompt(llama)
    meanwhile = [s for s, _ in long["one_answer_s_ms"] if long["sent_s"] < s <= long["sent_s"] + long["prompt_took_s"]]
    assert meanwhile and len(meanwhile) < len(long["one_answer_s_ms"])
    alone, beside = (serving.dialogue(llama, slots) for slots in (1, 2))
    assert [turn["read"] for turn in alone["turns"]] == [turn["prompt"] for turn in alone["turns"]]
    assert beside["only_new_tokens_read"] and beside["turns"][1]["read"] == serving.NEW + 1


def test_random_weights_have_as_many_layers_as_asked_for_and_end_no_answer(monkeypatch):
    tiny = {"dim": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "hidden_dim": 96, "vocab_size": 300}
    monkeypatch.setattr(random_8b, "CONFIG", replace(random_8b.CONFIG, **tiny))
    llama = serving.load(layers=2)
    assert len(llama.model.weights.layers) == 2
    assert len(serving.ask(llama, [1, 2, 3], 40).tokens) == 40
