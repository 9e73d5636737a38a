"""Dialogues give the ids of Llama 3's published chat template, which transformers renders and the package trl holds."""

from importlib.metadata import distribution
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from llama3.chat import encode_dialog
from tests import real_vocabulary as real
from tests.oracle.hugging_face import tokenizer
from tests.test_chat import dialogues


def test_1_000_dialogues_give_the_ids_of_hugging_face_s_template() -> None:
    template = Path(str(distribution("trl").locate_file("trl/chat_templates/llama3.jinja"))).read_text()
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), bos_token="<|begin_of_text|>", chat_template=template
    )
    for dialogue in dialogues(1_000, roles=["system", "user", "assistant", "ticket clerk"]):
        ids = theirs.apply_chat_template(dialogue, add_generation_prompt=True, return_dict=False)
        assert encode_dialog(real.tokenizer(True), dialogue) == ids
