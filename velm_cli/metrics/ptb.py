r"""Stanford's PTB tokens without Java, so that captions are scored on any machine, in milliseconds.

The result is that of the jar in pycocoevalcap (`-preserveLines -lowerCase`, then punctuation dropped) for all
text that `uncovered` does not name; `scripts/ptb_parity.py` shows it on every COCO caption and on random text.
The behaviour was learnt from outside, by asking the jar about millions of strings; none of its source is here.

How the jar reads: from left to right, and at each place the rule that sees furthest wins; of equals, the one
listed first. What a rule sees is its token and, for some, what must come after it, which stays to be read.
Line ends are seen as well, so a caption's tokens may depend on the next caption: in `b.` before `The dog` the
dot ends a sentence, before `dog` it belongs to an initial. Where no rule fits, the character is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Kinds of characters beyond ASCII, each with the one that stands for all of its kind in the rules. The jar's
# Unicode is of 2012; only what no later Unicode changed is listed.
KINDS = {
    "é": (  # letters: Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic, Japanese, Chinese, Korean, full width
        r"\xaa\xb5\xba\xc0-\xd6\xd8-\xf6\xf8-\u02c1\u02c6-\u02d1\u02e0-\u02e4\u02ec\u02ee\u1e00-\u1eff\u2071\u207f"
        r"\ufb00-\ufb06\u0370-\u0374\u0376\u0377\u037a-\u037d\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a4-\u03f5"
        r"\u03f7-\u0481\u048a-\u0527\u0531-\u0556\u0561-\u0587\u05d0-\u05ea\u0620-\u064a\u3005\u3006\u3041-\u3096"
        r"\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4db5\u4e00-\u9fcc\uac00-\ud7a3\uff21-\uff3a\uff41-\uff5a"
        r"\uff66-\uffbe"
    ),
    "\u0301": (  # marks, which belong to words but not to compounds
        r"\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0384\u0385\u0483-\u0487\u064b-\u0652"
    ),
    "٠": r"\u0660-\u0669\uff10-\uff19",
    "²": r"\xb2\xb3\xb9\u2070\u2074-\u2079\u2080-\u2089",
    "§": (  # symbols
        r"\xa1\xa5-\xa9\xac\xae-\xb1\xb4\xb6-\xb8\xbf\xd7\xf7\u0387\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b"
        r"\u203e-\u2042\u207a-\u207e\u208a-\u208e\u2103\u2109\u2116\u2122\u2155-\u215e\u2190-\u2bff\u3002\u3012\u30fb"
        r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
    ),
    "\u2009": r"\u2000-\u200a\u3000",
    "\ufffd": (  # skipped; \ud800-\udfff are the halves of what lies beyond \uffff
        r"\u200b-\u200f\u2012\u2024\u2025\u2027\u202a-\u202e\u203c\u203d\u2043\u2045-\u205e\u2060-\u2064\u20a1-\u20a3"
        r"\u20a5-\u20ab\u20ad-\u20bf\u3003\u3004\u3007-\u3011\u3013-\u3020\ud800-\udfff\ue000-\uf8ff\ufe00-\ufe0f\ufeff"
        r"\ufffc\ufffd"
    ),
}
SINGULAR = "\xa0–—―…¢£¤₠€¼½¾⅓⅔⁄、‐‑֊٫٬‘’‛“”‹›«»‚„‟"  # what the rules name themselves
BEYOND = r"\U0001d400-\U0001d7ff\U0001f000-\U0001faff\U00020000-\U0002fa1f"

# What the jar writes for a character or an entity.
WRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"¢": "cents", "£": "#", "¤": "$", "₠": "$", "€": "$"},
    **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"–": "--", "—": "--", "―": "--", "…": "...", '"': "''", "&apos;": "'", "&quot;": "''"},
}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": "", "&md;": "--", "&mdash;": "--", "&ndash;": "--"}
ASCII_QUOTES = str.maketrans(
    {"‘": "`", "‛": "`", "‹": "`", "’": "'", "›": "'", "“": "``", "«": "``", "”": "''", "»": "''"}
)
# What pycocoevalcap drops; it also lists -LRB- and the like, which `-lowerCase` hides from it.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Words that the jar knows, most of them in any case.
TITLES = (  # the dot after them is theirs
    "adj adm adv alex asst assoc atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen "
    "gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep "
    "reps rev sen sens sfc sgt spc st ste supt supts treas vs wm"
)
CLOSERS = (  # the dot after them is theirs, but may end the sentence too
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri "
    "ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt "
    "sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)
STATES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"  # as closers, when the first letter is a capital
COUNTERS = "art ca fig figs no nos op pp prop"  # the dot after them is theirs before a digit
OPENERS = (  # begin a sentence, when the first letter is a capital
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once "
    "One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
)
EXTENSIONS = (  # of files
    "bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py "
    "sql tar txt wav x xml zip"
)
BLENDS = {"can": "not", "gon": "na", "wan": "na", "got": "ta", "gim": "me", "lem": "me"}


def _any_case(words: str) -> str:
    return "(?i:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


def _capitalized(words: str) -> str:
    return "(?:" + "|".join(f"{word[0]}(?i:{word[1:]})" for word in sorted(words.split(), key=len, reverse=True)) + ")"


# Parts of the rules.
_A, _AD, _L, _LD, _D = "[A-Za-z]", "[A-Za-z0-9]", "[A-Za-zé]", "[A-Za-zé0-9٠]", "[0-9٠]"
_GAP = "[ \xa0\u2009\n]"
_APOSTROPHE = "(?:['’]|(?i:&apos;))"
_LIKE_APOSTROPHE = "(?:['’‘`‛]|(?i:&apos;))"
_ENDING = f"{_APOSTROPHE}(?i:s|d|m|ll|re|ve)"
_ACCENTED = "&[aeiouAEIOU](?i:acute|grave|uml);"
_IN_WORD = f"(?:[A-Za-zé\u03010-9٠]|{_ACCENTED})"
_WORD = f"(?:[A-Za-zé\u0301]|{_ACCENTED}){_IN_WORD}*"
_DOTTED = f"{_WORD}(?:[.!?]{_WORD})+"  # example.org, and sentences without a space between them
_ELIDED = f"[dloDLO]{_LIKE_APOSTROPHE}{_LD}{{2,}}"  # O'Brien
_COMPOUND = rf"(?:{_ELIDED}|{_LD}+)(?:[-_\u058a\u2010\u2011](?:{_ELIDED}|{_LD}+))*"
_MIXED = rf"{_AD}[A-Za-z0-9.,]*(?:-(?:(?:{_A}\.){{2,}}|{_AD}+))+"  # U.S.-led, 10,000-seat, non-U.S.
_FIRM = "[A-Z]+(?:(?:(?i:&amp;)|[&+])[A-Z]+)+"  # AT&T
_SIDE, _SLASH = f"{_AD}+(?:-{_A}+){{0,2}}", r"\\?/"
_JOINT, _EYE = r"[- \xa0]", "[-^x=~<>']"
_NAME, _VALUE = f"{_A}[A-Za-z0-9_:.-]*", "(?:'[^'\n]*'|\"[^\"\n]*\")"
_TAG = rf"<[!?][A-Za-z-][^>\n]*>|</{_NAME} *>|<{_NAME}(?: +{_NAME}(?: *= *{_VALUE})?)* */? *>"
_IN_URL, _IN_PATH, _URL_END = r'[^ \n"<>|(){}]', r'[^ \n"<>|()]', r'[^ \n"<>|().!?,{}-]'
_PATH = f"/{_IN_PATH}+{_URL_END}"
_IN_SITE = r'[^ \n"<>|.!?(){},]'
_IN_HOST = r"[^ \n!\"$'(),\-./:;<=>?@\[\\\]^_`{|}A-Z0-9]"  # the jar takes no capitals and digits in these
_IN_MAIL, _IN_MAIL_HOST = r'[^ \xa0\n"<>|(){}]', r'[^ \xa0\n"<>|(){}.]'


def _plain(token: str) -> str:
    return token.lower().replace(" ", "\xa0")


def _character(token: str) -> str:
    return WRITTEN.get(token) or ENTITIES.get(token.lower(), token.lower())


def _contraction(token: str) -> str:
    return token.replace("&apos;", "'").lower().translate(ASCII_QUOTES)


def _firm(token: str) -> str:
    return token.lower().replace("&amp;", "&")


def _bracketed(token: str) -> str:
    return _plain(token).replace("(", "-lrb-").replace(")", "-rrb-")


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of token: group 1 of `pattern`, the rest of which is what must follow; `write` spells it."""

    pattern: re.Pattern[str]
    write: Callable[[str], str]


def _rule(token: str, before: str = "", write: Callable[[str], str] = _plain) -> Rule:
    return Rule(re.compile(f"({token})(?:{before})"), write)


RULES = (
    _rule("[ \xa0\u2009]+", write=lambda token: ""),
    _rule(_any_case(" ".join([*ENTITIES, "&apos;", "&quot;"])), write=_character),
    _rule("(?i:&(?:ht|lr|qc|ql|qr|tl|ur|cdq|odq);)|&#[0-9]+;"),
    _rule(_TAG),
    # Words with an apostrophe, and words written as one.
    *(_rule(f"(?i:{first})", f"(?i:{second})") for first, second in BLENDS.items()),
    _rule("'[tT]", "(?i:is|was)"),
    _rule("(?i:li'l|ev'ry|nat'l|c'mon|s'mores|nor'easter|e'er)"),
    _rule(f"(?i:c{_APOSTROPHE}est|cap{_APOSTROPHE}n|(?:dunkin|somethin|ol){_APOSTROPHE}|o{_LIKE_APOSTROPHE}o)"),
    _rule(f"[nN]{_LIKE_APOSTROPHE}[tT]", write=_contraction),
    _rule("[A-Za-z]*[A-MO-Za-mo-z]", f"[nN]{_LIKE_APOSTROPHE}[tT]"),
    _rule(f"[dDjJlL]{_APOSTROPHE}"),
    _rule(_ENDING, "[^A-Za-z]", write=_contraction),
    _rule(f"{_APOSTROPHE}(?:[nN]{_APOSTROPHE}|(?i:em|till?|cause))|(?:’|(?i:&apos;))[nN]|{_APOSTROPHE}[2-9]0[sS]"),
    _rule("'[nN]", r"[ \xa0\n]|\Z"),
    _rule(f"{_APOSTROPHE}[0-9][0-9]", _GAP),
    # Addresses.
    _rule(f"(?i:https?)://{_IN_URL}+{_URL_END}"),
    _rule(rf"(?i:www)\.(?:{_IN_SITE}+\.)+{_A}{{2,4}}{_PATH}"),
    _rule(rf"(?i:www)\.(?:{_IN_SITE}+\.)+{_A}{{2,4}}"),
    _rule(rf"(?:{_IN_HOST}+\.)+(?i:com|net|org|edu)(?:{_PATH})?"),
    _rule(rf"(?:<|(?i:&lt;))?(?:(?i:mailto:)|{_AD}){_IN_MAIL}*@{_IN_MAIL_HOST}+(?:\.{_IN_MAIL_HOST}+)*>?"),
    _rule(f"@[A-Za-z_][A-Za-z0-9_]*|#(?:[A-Za-zé\u0301]|{_ACCENTED})+"),
    # Words and their dots.
    _rule(_DOTTED),
    _rule(
        rf"(?:{_any_case(CLOSERS)}|{_capitalized(STATES)}|[Pp]{{1,2}}[Tt][ey][Ss]?|(?i:(?:ph|ed)\.d))\.", r"[\s\S]{0,2}"
    ),
    _rule(rf"(?:{_any_case(TITLES)}|[Mm][ft][Gg]|{_A}(?:\.{_A})*)\."),
    _rule(rf"{_any_case(COUNTERS)}\.", f"{_GAP}?{_D}"),
    _rule(rf"{_IN_WORD}+(?:\.{_IN_WORD}+)*\.{_any_case(EXTENSIONS)}", rf"{_GAP}|[.,!?]"),
    _rule(_A, rf"\.{_GAP}+(?:M[rsRS]\.|{_TAG}|{_capitalized(OPENERS)}){_GAP}"),
    _rule(_WORD),
    _rule(f"{_DOTTED}|{_WORD}", _ENDING),
    _rule(f"[yY]{_APOSTROPHE}", _L),
    _rule(f"{_L}+[aeiouyAEIOUY]{_LIKE_APOSTROPHE}[aeiouA-Z]{_L}*|(?i:ne|o){_LIKE_APOSTROPHE}(?i:er)"),
    _rule(f"[nA-HJ-XZ]{_LIKE_APOSTROPHE}{_L}{{2,}}"),
    _rule(_FIRM, write=_firm),
    _rule(r"[A-Z]+\$|[cCfF]#|[cC]\+\+"),
    _rule(_COMPOUND),
    _rule("(?i:anti|pro)-"),
    _rule(_MIXED),
    _rule(rf"(?:{_MIXED}|{_DOTTED}|{_WORD}|{_D}+|{_FIRM}|{_COMPOUND})\.", "[,:;、]", write=_firm),
    _rule(f"{_SIDE}(?:{_SLASH}{_SIDE}){{1,2}}"),
    # Numbers.
    _rule(rf"[-+]?(?:{_D}*(?:[.,:\u066b\u066c]{_D}+)+|{_D}+)"),
    _rule(rf"(?:{_D}{{1,4}}{_JOINT})?{_D}{{1,4}}(?:{_SLASH}|\u2044){_D}{{1,4}}"),
    _rule(f"{_D}{{1,2}}[-/]{_D}{{1,2}}[-/]{_D}{{2,4}}"),
    _rule(  # telephone numbers
        rf"(?:\+{{0,2}}{_D}{{2,4}}{_JOINT}(?:{_D}{{2,4}}{_JOINT})?|\({_D}{{2,3}}\)[ \xa0]?)"
        rf"{_D}{{3,4}}{_JOINT}?{_D}{{3,5}}",
        write=_bracketed,
    ),
    # Faces, runs, single characters.
    _rule(r"[<>]?[:;=][o*'-]?[()DPdpO\\@{|\[\]]", "[^A-Za-z0-9]", write=_bracketed),
    _rule(f"{_EYE}_{_EYE}"),
    _rule(rf"\((?:{_EYE}[._]?{_EYE}|[\^x=~<>']-[\^x=~<>'`])\)", write=_bracketed),
    _rule(r"\.{3,5}|\.(?: \.){2,4}|\.(?:\xa0\.){2,4}", write=lambda token: "..."),
    _rule("-{2,}", write=lambda token: token if len(token) > 4 else "--"),
    _rule(r"[!?]+|\*+|(?:\\\*)+|_+|#+|@+|<<|>>|²+"),
    _rule("''|[`‘’‛“”‹›«»‚„‟]{1,2}", write=_contraction),
    _rule('"', "[A-Za-z0-9$]", write=_character),
    _rule("'", "[A-Za-z]{2}"),
    _rule(_ENDING, write=_contraction),
    _rule(r"[!-/:-@\[-`{-~§¢£¤₠€¼½¾⅓⅔–—―…⁄、]", write=_character),
)

_UNCOVERED = re.compile(f"[^ -~{SINGULAR}{BEYOND}{''.join(KINDS.values())}]|[\ud800-\udfff]")
_LONGEST = 5000  # characters without a space: rules that look far ahead would take minutes for a hundred thousand
# A word or compound, perhaps with 's, a comma or a full stop: most of what stands between two spaces.
_SIMPLE = re.compile(rf"(?!{_A}\.){_A}+(?:-{_A}+)*(?:'s)?[.,]?")
_NOT_SIMPLE = frozenset(f"{TITLES} {CLOSERS} {STATES} {COUNTERS}".lower().split()) | set(map("".join, BLENDS.items()))
_NOT_SIMPLE |= {"mfg", "mtg", "pte", "pty", "ptes", "ptys", "ppte", "ppty", "pptes", "pptys"}
# What may be read otherwise for what is beyond the space: numbers, tags, a dot that could be its word's.
_OPEN = re.compile(rf"[<0-9٠ \xa0\u2009]|{_any_case(COUNTERS)}\.$|^(?![A-Za-z-]*[A-Za-z]{{2}}\.$).*[A-Za-z]\.$")
_MEMBERS = {kind: re.compile(f"[{members}]") for kind, members in KINDS.items()}
_WIDE = re.compile("[\xa0\u2009]")
_BEYOND = re.compile("[\U00010000-\U0010ffff]")
_HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class _Kinds(dict[int, str]):
    """For `str.translate`: the character that stands for a code point's kind, or itself."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = next((kind for kind, members in _MEMBERS.items() if members.match(character)), character)
        return self[code]


_KINDS = _Kinds()


def _kinds_of(text: str) -> str:
    """`text` as the rules see it, of the same length."""
    return text if text.isascii() else text.translate(_KINDS)


class _Chunks(dict[str, str]):
    """The tokens of what stands between two spaces; `unsure` where they hang on what is beyond."""

    unsure = "\0"

    def __missing__(self, chunk: str) -> str:
        word = chunk.rstrip(".,").lower()
        if _SIMPLE.fullmatch(chunk) and word not in _NOT_SIMPLE:
            self[chunk] = word.replace("'s", " 's")
        else:
            self[chunk] = self.unsure if _OPEN.search(_kinds_of(chunk)) else " ".join(_read(chunk, "\n\n", None))
        return self[chunk]


def uncovered(captions: Sequence[str]) -> list[int]:
    """The indices of captions for which `tokenize` is not known to equal the jar, or would be slow.

    The former have characters that the rules do not know. Control characters and line ends are among those:
    `one_line` takes them out.
    """
    return [index for index, caption in enumerate(captions) if _beyond_rules(caption) or _too_long(caption)]


def _beyond_rules(caption: str) -> bool:
    return not (caption.isascii() and caption.isprintable()) and _UNCOVERED.search(caption) is not None


def _too_long(caption: str) -> bool:
    return len(caption) > _LONGEST and max(map(len, caption.split(" "))) > _LONGEST


def tokenize(captions: Sequence[str]) -> list[str]:
    """One string of space-separated tokens a caption; the jar's result when `uncovered` names no caption.

    The captions are one text, as they are to the jar: in another order they may have other tokens.
    """
    if not captions:
        return []
    captions = [caption if caption.isascii() else _BEYOND.sub(_to_halves, caption) for caption in captions]
    chunks = _Chunks({"\n": "\n"})
    text = " \n ".join(captions)
    lines = " ".join(filter(None, map(chunks.__getitem__, text.split(" ")))).split("\n")
    for index, caption in enumerate(captions):
        # Three dots may be one token across spaces, and what ends the last line is not a line end.
        whole = ". ." in caption or index == len(captions) - 1
        if whole or chunks.unsure in lines[index]:
            known = None if whole or _WIDE.search(_kinds_of(caption)) else chunks
            lines[index] = " ".join(_read(caption, _following(captions, index), known))
    return [line.strip(" ") if line.isascii() else _HALVES.sub(_to_whole, line.strip(" ")) for line in lines]


def _read(text: str, following: str, known: _Chunks | None) -> list[str]:
    """The tokens of `text`, which `following` comes after; those of chunks in `known` need no reading."""
    tokens: list[str] = []
    position, end = 0, len(text)
    text += following
    kinds = _kinds_of(text)
    while position < end:
        if known is not None and (position == 0 or text[position - 1] == " "):
            stop = text.find(" ", position, end) % (end + 1)  # -1, no space, becomes the end
            chunk = known[text[position:stop]]
            if chunk != known.unsure:
                tokens.append(chunk)
                position = stop + 1
                continue
        found = None
        for rule in RULES:
            match = rule.pattern.match(kinds, position)
            if match and (found is None or match.end() > found.end()):
                found, write = match, rule.write
        if found is None:
            position += 1
        else:
            tokens.append(write(text[position : found.end(1)]))
            position = found.end(1)
    tokens = [token for token in tokens if token]
    if tokens:
        tokens[-1] = tokens[-1].rstrip()  # pycocoevalcap strips the line, and some addresses end in a wide space
    return [token for token in tokens if token not in PUNCTUATION]


def _following(captions: Sequence[str], index: int) -> str:
    """As much of the text after a caption as any rule can see: the line ends and the next line that is not blank."""
    text = ""
    for number in range(index + 1, len(captions)):
        text += "\n" + captions[number]
        if captions[number].strip():
            return text + "\n" if number + 1 < len(captions) else text
    return text


def _to_halves(match: re.Match[str]) -> str:
    """A character beyond \\uffff as Java has it, in two."""
    high, low = divmod(ord(match[0]) - 0x10000, 0x400)
    return chr(0xD800 + high) + chr(0xDC00 + low)


def _to_whole(match: re.Match[str]) -> str:
    return match[0].encode("utf-16", "surrogatepass").decode("utf-16")
