"""From a model's name or folder to its weights.

Reading order: safetensors_file, json_file, shards, names, config_file, chat_template, quantised, folder, adapter, hub,
transfer.
"""

from llama3.checkpoint.adapter import load_adapter
from llama3.checkpoint.folder import Checkpoint, load_folder
from llama3.checkpoint.hub import download, resolve

__all__ = ["Checkpoint", "download", "load_adapter", "load_folder", "resolve"]
