"""Which language a text is in: one of some twenty by its script and its little words, or one of a few by learned profiles.

`identify` knows the most frequent function words of twenty languages and needs nothing learned; it says nothing where it sees
no evidence. `Languages` tells a few languages apart by a profile of each, its most frequent sequences of one to three letters
in order (Cavnar and Trenkle 1994), learned from a few thousand sentences; it has some two kilobytes.
"""

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

from rheme.text.features import tokens

# languages not written in Latin letters -> what the Unicode names of their letters begin with; of those that share a script the
# first one is taken to be meant, but for Cyrillic, where words tell
SCRIPTS = {
    "ar": ("ARABIC",), "fa": ("ARABIC",), "bn": ("BENGALI",), "el": ("GREEK",), "he": ("HEBREW",), "hi": ("DEVANAGARI",),
    "hy": ("ARMENIAN",), "zh": ("CJK",), "ja": ("CJK", "HIRAGANA", "KATAKANA"), "ka": ("GEORGIAN",), "ko": ("HANGUL",),
    "ta": ("TAMIL",), "th": ("THAI",), "bg": ("CYRILLIC",), "ru": ("CYRILLIC",), "uk": ("CYRILLIC",),
}  # fmt: skip
_LATIN = ("LATIN", "FULLWIDTH LATIN")
# The most frequent function words of a language; each counts 1 / (the number of languages that share it).
_WORDS = {
    "en": (
        "the of and to a in is it you that he was for on are with as i his they be at this have from or had by not but "
        "what all were we when your can said there use an each which she do how their if will up about out them then so "
        "her would like him has my me more who its no been did get made where don isn didn doesn wasn aren won ll ve re "
        "i'm could let go come got know see think want very just too any why am good"
    ),
    "fr": (
        "le la les de des du un une et à en est que qui dans il elle je tu nous vous ne pas se ce cette sur pour par "
        "avec au aux son sa ses mon ma mes ton ta tes ou où mais plus suis es sont été être avoir ai as a ont cela ça "
        "très bien tout faire fait j l qu comme si y leur lui moi toi rien quand comment pourquoi"
    ),
    "de": (
        "der die das und in zu den ist nicht von sie es mit sich des auf für ein eine einen dem als auch an er so dass "
        "ich du wir ihr mich dich mir dir was wie wo wer warum hat habe haben bin bist sind war werden wird kann noch "
        "nur nach bei aus wenn aber oder man einer einem sehr immer kein keine mein dein sein ihre schon"
    ),
    "es": (
        "el la los las de que y en un una es no se del al por con para su lo como más pero sus le ya o este sí porque "
        "esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante ella yo tú él eso esto "
        "mi qué te está soy eres"
    ),
    "it": (
        "il lo la i gli le di che e è un una in non per con si da del della dei delle al alla sono ho hai ha come ma "
        "più questo questa mi ti ci se cosa molto anche io tu lui lei noi voi loro perché quando dove nel nella su o "
        "essere stato"
    ),
    "pt": (
        "o a os as de que e em um uma é não se do da dos das no na por com para seu sua como mais mas eu você ele ela "
        "isso este esta muito também ao foi são está tem ser me te nós já quando onde porque sem ou nos pelo pela"
    ),
    "nl": (
        "de het een en van in is dat op te niet zijn met voor die aan er ook als maar om dan zij hij ik je jij we wij "
        "wat deze dit naar heb heeft hebben ben bent was waar hoe waarom geen nog wel kan bij uit zo mijn jouw hun over"
    ),
    "sv": (
        "och i att det som en på är av för med den till inte jag har de ett om han var men du vi sig från så kan när nu "
        "hon man vad mycket eller hur där din min ingen mig dig"
    ),
    "da": (
        "og i at det er en til på af de med for ikke der den jeg har et som han var men du vi sig fra så kan når nu hun "
        "man hvad meget eller hvor din min ingen mig dig også"
    ),
    "no": (
        "og i at det er en til på av de med for ikke som den jeg har et han var men du vi seg fra så kan når nå hun hva "
        "mye eller hvor din min ingen meg deg også være"
    ),
    "fi": (
        "ja on ei se että oli en hän mutta ovat kun niin myös minä sinä hänen mitä tämä joka voi olla ole jos kuin nyt "
        "vain mikä"
    ),
    "pl": (
        "i w nie na się że to z do jest jak o co tak ale za ja ty on czy po od już tylko jestem był była może mnie ci ich dla"
    ),
    "cs": ("a v se na je že to s z do i jak o co ale za já ty on jsem jsi by byl byla není pro když jen už mi tak který nebo"),
    "tr": ("ve bir bu da de için ne ile çok ben sen o var mı mi değil gibi daha ama kadar her şey yok olarak en nasıl neden"),
    "ro": ("și de la în a nu o că un este cu pe se din ce mai pentru sunt eu tu am ai dar sau care fi foarte acest această"),
    "hu": ("a az és hogy nem is egy van ez de meg mint csak én te ő volt ha már el mi ki még nagyon vagy"),
    "id": (
        "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya kamu dia ada adalah ke kami mereka bisa sudah"
    ),
    "vi": ("và của là không có được cho một người tôi bạn trong này đã với các những anh em chúng đó rất gì"),
    "uk": ("і в не на що я з це до як та він вона ми ви ти але за у є мене його її чи від"),
    "ru": ("и в не на что я с это как по но он она мы вы ты за у от его её из же бы то все так"),
}
# Letters of one language (of those above), or that it uses most.
_LETTERS = {char: language for language, chars in {
    "es": "ñ¿¡", "de": "ßäöü", "fr": "çœèê", "pt": "ãõ", "da": "ø", "sv": "å",
    "pl": "łżąę", "cs": "řůě", "tr": "ğış", "ro": "țș", "hu": "őű", "vi": "đơư", "uk": "іїє", "ru": "ыэё",
}.items() for char in chars}  # fmt: skip
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_LETTER_RUNS = re.compile(r"[^\W\d_]+")
_BY_SCRIPT = {name: code for code, names in reversed(SCRIPTS.items()) for name in names if name != "CYRILLIC"}
_SHARES: dict[str, dict[str, float]] = {}


def _shares() -> dict[str, dict[str, float]]:
    """Word -> language -> what the word counts for it."""
    if not _SHARES:
        found: dict[str, list[str]] = {}
        for language, words in _WORDS.items():
            for word in set(words.split()):
                found.setdefault(word, []).append(language)
        _SHARES.update({word: dict.fromkeys(languages, 1.0 / len(languages)) for word, languages in found.items()})
    return _SHARES


@functools.cache
def _script(char: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK."""
    return unicodedata.name(char, "").split(" ")[0]


@functools.cache
def function_words(language: str) -> frozenset[str]:
    """The little words of a language, none for one that is not known."""
    return frozenset(_WORDS.get(language, "").split())


def identify(text: str) -> str | None:
    """The code of the text's language (ISO 639-1), or None where nothing speaks for one."""
    scripts = Counter(map(_script, filter(str.isalpha, text)))
    if not scripts:
        return None
    if scripts["HIRAGANA"] or scripts["KATAKANA"]:
        scripts["HIRAGANA"] += scripts.pop("CJK", 0)
    script = max(sorted(scripts), key=lambda name: scripts[name])
    if script in _BY_SCRIPT:
        return _BY_SCRIPT[script]
    shares = _shares()
    score: Counter[str] = Counter()
    for word in tokens(text):
        for language, share in shares.get(word, {}).items():
            score[language] += share  # type: ignore[assignment]
    for char in text.casefold() if not text.isascii() else "":
        if char in _LETTERS:
            score[_LETTERS[char]] += 0.5  # type: ignore[assignment]
    if not score:
        return None
    best = sorted(score, key=lambda language: (-score[language], language))
    return best[0] if len(best) == 1 or score[best[0]] > score[best[1]] else None


def words(text: str) -> list[str]:
    """The words of a text as they are written, without marks."""
    return _WORD.findall(text)


# Profiles -------------------------------------------------------------------------------------------------------------------

_SIZE = 600
_MOST = 400  # letters of a text that are looked at


def in_script(text: str, language: str) -> bool:
    """Whether at least half of the letters belong to the language's script."""
    letters = [unicodedata.name(char, "") for char in text if char.isalpha()]
    scripts = SCRIPTS.get(language, _LATIN)
    return 2 * sum(name.startswith(scripts) for name in letters) >= len(letters)


def _grams(text: str) -> list[str]:
    """Sequences of one to three letters, with _ where a word begins or ends."""
    found = []
    for word in _LETTER_RUNS.findall(text.lower()):
        padded = f"_{word}_"
        found += [padded[k : k + size] for size in (1, 2, 3) for k in range(len(padded) - size + 1) if size > 1 or k]
    return [gram for gram in found if gram != "_"]


def profile(texts: Iterable[str], size: int = _SIZE) -> str:
    """The profile of a language: its most frequent sequences, the first the most frequent, divided by spaces."""
    counts = Counter(gram for text in texts for gram in _grams(text))
    return " ".join(gram for gram, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size])


class Languages:
    """Tells which of some languages a text is in, from their profiles."""

    def __init__(self, profiles: Mapping[str, str]) -> None:
        # By Zipf's law the frequency of the r-th sequence goes as 1 / r; one that is not in the profile comes after all.
        self._weights = {
            code: {gram: -math.log(rank + 10) for rank, gram in enumerate(grams.split())} for code, grams in profiles.items()
        }

    def scores(self, text: str) -> dict[str, float]:
        """The log-probability (nats, but for a constant) of the text's letters in each language; all 0 without letters."""
        grams = _grams(text[:_MOST])
        found = {}
        for code, weights in self._weights.items():
            least = -math.log(4 * len(weights) + 10)
            script = 0.0 if in_script(text, code) else -1e3
            # The sequences of a word overlap: three for each letter.
            found[code] = script + math.fsum(weights.get(gram, least) for gram in grams) / 3
        return found

    def detect(self, text: str, default: str = "", margin: float = 0.0) -> str:
        """The likeliest language; `default` unless another one is likelier by more than `margin` nats."""
        scores = self.scores(text)
        if not scores:
            return default
        best = max(sorted(scores), key=lambda code: scores[code])
        return best if default not in scores or scores[best] > scores[default] + margin else default
