"""The picture in docs/tensor_parallel.md is what its script draws."""

from docs.make_ranks_picture import PICTURE, picture


def test_the_picture_is_up_to_date():
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run: python -m docs.make_ranks_picture"
