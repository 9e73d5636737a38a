"""Recognises a Git LFS pointer: three lines of text that replace a large file until Git LFS has fetched it."""

LFS_POINTER = "this is a Git LFS pointer, not the file itself: run `git lfs pull` in the repository that it is from"


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins with these bytes (64 are enough) is a pointer."""
    return start.startswith(b"version https://git-lfs")
