"""Thoughts as a small model can write them: the words of a passage that carry its meaning, in their order.

Ten million parameters do not write true sentences. What a thought is for, the words of the passage that is
looked for, they can learn, and every token that is no function word is one of those.
"""

from __future__ import annotations

import re

MOST_WORDS = 14
WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
FUNCTION_WORDS = frozenset(
    WORD.findall("""
    a about above after again against all also although always among an and another any are as at be
    because become becomes been before being below between both but by came can cannot come could
    did do does doing done down due during each either else etc even ever every few for from further
    get gets given gives go goes had has have having he hence her here hers him his how however i if
    in including instead into is it its itself just kind kinds known least less let like made make
    makes many may me means might more most much must my neither no nor not now of off often on once
    one only onto or other others our out over own part per quite rather same several shall she
    should since so some something such than that the their them themselves then there therefore
    these they thing things this those though through thus to together too toward under until up
    upon us use used uses using usually very via was way we well were what when where whether which
    while who whom whose why will with within without would yet you your
    """)
)


def telegram(text: str, most: int = MOST_WORDS) -> str:
    """The first `most` different words of `text` that are no function words."""
    words = dict.fromkeys(word.lower() for word in WORD.findall(text))
    return " ".join([word for word in words if word not in FUNCTION_WORDS][:most])
