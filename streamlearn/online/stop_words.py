"""English words that say nothing of a text's topic, and names of the elements of HTML."""

from __future__ import annotations

from typing import Final

__all__ = ["ELEMENTS", "ENGLISH"]

# Articles, pronouns, prepositions, conjunctions, auxiliaries, and what contractions leave behind,
# since words end at apostrophes (don't: don, t). No verbs, nouns or numbers.
_ENGLISH = """
a about above across after afterwards again against all almost alone along already also although
always am among amongst an and another any anybody anyhow anyone anything anyway anywhere are
aren around as at away be became because become becomes been before beforehand behind being
below beside besides between beyond both but by can cannot could couldn d did didn do does doesn
doing don done down due during each either else elsewhere enough etc even ever every everybody
everyone everything everywhere except few for from further had hadn has hasn have haven having
he hence her here hers herself him himself his how however i ie if in indeed instead into is isn
it its itself just least less ll m many may me meanwhile might mightn more moreover most mostly
much must mustn my myself namely need needn neither never nevertheless no nobody none nor not
nothing now nowhere o of off often on once one ones only onto or other others otherwise our ours
ourselves out over own per perhaps quite rather re really s same shall shan she should shouldn
since so some somebody somehow someone something sometimes somewhere still such t than that the
their theirs them themselves then there thereafter thereby therefore therein thereupon these
they this those though through throughout thus to together too toward towards under unless until
up upon us ve very via was wasn we were weren what whatever when whence whenever where whereas
whereby wherein whereupon wherever whether which whichever while whither who whoever whole whom
whose why will with within without won would wouldn yet you your yours yourself yourselves
"""

# Elements of HTML (the living standard's, and those of old), and what <!doctype and <?xml name.
_ELEMENTS = """
a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink
blockquote body br button canvas caption center cite code col colgroup data datalist dd del
details dfn dialog dir div dl doctype dt em embed fieldset figcaption figure font footer form
frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe img input ins kbd label
legend li link main map mark marquee menu meta meter nav nobr noframes noscript object ol
optgroup option output p param picture pre progress q rp rt ruby s samp script search section
select slot small source span strike strong style sub summary sup svg table tbody td template
textarea tfoot th thead time title tr track tt u ul var video wbr
"""

ENGLISH: Final = frozenset(_ENGLISH.split())
ELEMENTS: Final = frozenset(_ELEMENTS.split())
