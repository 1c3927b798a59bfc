"""Numbers of bytes as people write and read them."""

import argparse

import pytest

from fastllm.cli.sizes import human, size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("1kb", 1024),
        ("7B", 7),
        (" 3T ", 3 << 40),
    ],
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert size(text) == nbytes


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "nan", "2X", "1..5G", "2 G G", "9" * 5000, "\u0663M"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="512M or 2G"):
        size(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.0 KB"),
        (1000, "1.0 KB"),
        (20 << 20, "20 MB"),
        (3 << 29, "1.5 GB"),
        (5 << 50, "5120 TB"),
    ],
)
def test_sizes_are_shown(nbytes: int, text: str) -> None:
    assert human(nbytes) == text
