"""Seeds of fields: fixed for ever, since learned keys are made of them."""

import pytest

from streamlearn.online.features import field_seed


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("origin", 0xEFD05D8B6F9E9441),
        ("when.hour", 0x1555E28535649713),
        ("origin*destination", 0x7404DFDFDB7B874B),
        ("C1", 0x4A49A44325CCA7F1),
        ("", 0xDB155D0A9302F6B1),
        ("é", 0xC6D284879D967A19),
    ],
)
def test_a_field_keeps_its_seed(name, seed):
    assert field_seed(name) == seed
    assert int(field_seed(name)) % 2 == 1
