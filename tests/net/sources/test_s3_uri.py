"""What an s3:// URI asks for."""

import pytest

from streamlearn.errors import ConfigError
from streamlearn.net.sources.s3_uri import S3Uri


@pytest.mark.parametrize(
    ("pattern", "prefix", "yes", "no"),
    [
        ("", "", ["a", "a/b"], []),
        ("logs/", "logs/", ["logs/a", "logs/a/b"], ["log", "logsa"]),
        ("logs/a", "logs/a", ["logs/a", "logs/a/b"], ["logs/ab"]),
        ("logs/a*", "logs/a", ["logs/a", "logs/abc"], ["logs/a/b", "logs/b"]),
        ("logs/**", "logs/", ["logs/a", "logs/a/b"], ["log"]),
        ("logs/a**", "logs/a", ["logs/a", "logs/a/b"], ["logs/b"]),
        ("**/*.gz", "", ["a.gz", "x/a.gz", "x/y/a.gz"], ["a.zst", "x/a.gzz"]),
        ("x/**/*.json.gz", "x/", ["x/a.json.gz", "x/y/z/a.json.gz"], ["a.json.gz", "xy/a.json.gz"]),
        ("day_?.txt", "day_", ["day_1.txt"], ["day_12.txt", "day_/.txt", "day_.txt"]),
        ("day_[0-3].txt", "day_", ["day_0.txt", "day_3.txt"], ["day_4.txt", "day_/.txt"]),
        ("day_[!0-3]", "day_", ["day_4"], ["day_0", "day_/"]),
        ("a[*]b", "a", ["a*b", "a[*]b"], ["axb"]),
        ("a[]]b", "a", ["a]b"], ["ab"]),
        ("a[b", "a", ["a[b"], ["ab"]),
        ("a[^]", "a", ["a[^]"], ["a^"]),
        ("a.b+c (1)*", "a.b+c (1)", ["a.b+c (1)", "a.b+c (1)x"], ["aXb+c (1)"]),
        ("*/", "", ["a/b", "a/b/c"], ["a"]),
        ("p%20q#r", "p%20q#r", ["p%20q#r"], ["p q#r"]),
        ("größe*", "größe", ["größe", "größe-日本"], ["grosse"]),
        ("a*", "a", ["a\nb"], []),
    ],
)
def test_pattern_takes_the_keys_it_describes(pattern, prefix, yes, no):
    uri = S3Uri.parse(f"s3://bucket/{pattern}")
    assert (uri.bucket, uri.pattern, uri.prefix) == ("bucket", pattern, prefix)
    assert [key for key in yes if not uri.matches(key)] == []
    assert [key for key in no if uri.matches(key)] == []


@pytest.mark.parametrize("pattern", ["a", "a/b", "a b", "a+b", "a%2Fb"])
def test_literal_pattern_can_be_one_key(pattern):
    assert S3Uri.parse(f"s3://bucket/{pattern}").is_key


@pytest.mark.parametrize("pattern", ["", "a/", "a*", "a?", "a[bc]"])
def test_prefix_and_glob_are_not_one_key(pattern):
    assert not S3Uri.parse(f"s3://bucket/{pattern}").is_key


def test_bucket_alone_takes_everything():
    assert S3Uri.parse("s3://bucket").matches("any/key")


@pytest.mark.parametrize(
    "uri", ["s3://", "s3:///key", "http://bucket/key", "bucket/key", "s3:bucket"]
)
def test_uri_without_bucket_is_refused_with_the_form_expected(uri):
    with pytest.raises(ConfigError, match="does not name an S3 bucket") as caught:
        S3Uri.parse(uri)
    assert caught.value.exit_code == 2


def test_uri_reads_back_as_written():
    assert str(S3Uri.parse("s3://b/x y/*.gz")) == "s3://b/x y/*.gz"
    assert S3Uri.parse("S3://b/x").uri_of("x y+%") == "s3://b/x y+%"
