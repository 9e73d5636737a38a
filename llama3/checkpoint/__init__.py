"""From a model's name or folder to weights in memory. Read: safetensors_file, shards, names, folder, hub, transfer."""

from llama3.checkpoint.folder import Checkpoint, load_folder
from llama3.checkpoint.hub import download, resolve

__all__ = ["Checkpoint", "download", "load_folder", "resolve"]
