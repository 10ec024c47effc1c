"""Which language a text is in: by its script, then by its most frequent little words and its letters.

Made for the check that a text is in a model's language, not for a census of languages: it knows some twenty, and says
nothing where it sees no evidence.
"""

import functools
import re
import unicodedata
from collections import Counter

from rheme.text.features import tokens

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
# Scripts that one language (of those with a code here) is written in.
_SCRIPTS = {
    "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "ARABIC": "ar", "HEBREW": "he", "GREEK": "el",
    "THAI": "th", "DEVANAGARI": "hi", "ARMENIAN": "hy", "GEORGIAN": "ka", "BENGALI": "bn", "TAMIL": "ta",
}  # fmt: skip

_WORD = re.compile(r"\w+(?:['’]\w+)*")
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
    if script in _SCRIPTS:
        return _SCRIPTS[script]
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
