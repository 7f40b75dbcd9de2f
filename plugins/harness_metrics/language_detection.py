"""The language of a text, by its script and its most frequent words, without a model.

It distinguishes the languages that IFEval asks for. Scripts that only one of them uses decide alone. Languages that
share a script are distinguished by frequent words, which count less if several languages have them, and by letters. A
text of a few words may have none of these words, or words of several languages: its language is undecided.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

_LANGUAGE_OF_SCRIPT: Mapping[str, str] = {
    "CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "THAI": "th", "HEBREW": "he", "GREEK": "el",
    "BENGALI": "bn", "TELUGU": "te", "TAMIL": "ta", "KANNADA": "kn", "MALAYALAM": "ml", "GUJARATI": "gu",
    "GURMUKHI": "pa", "ARMENIAN": "hy", "GEORGIAN": "ka",
}  # fmt: skip
"""First word of a character's Unicode name -> the language that uses the script."""

_WORDS: Mapping[str, Mapping[str, str]] = {
    "LATIN": {
        "en": "the of and to in is that it for with as on are this by be was have not you from or at an we can your "
        "a i my but they their there which will one all has had what when he she if so no do does "
        "how why where who about into out then these those some any each every many most other only just like make "
        "made use used know time day would could should might must were been because now here good "
        "very much more people",
        "es": "el la los las de que y en un una es por con para se no su más como al del está son muy pero",
        "pt": "o a os as de que e em um uma é por com para se não seu mais como ao do da está são muito mas",
        "fr": "le la les de des que et en un une est par avec pour se ne pas son plus comme au du dans qui sont",
        "it": "il lo la gli le di che e in un una è per con si non suo più come al del della sono molto ma nel",
        "de": "der die das und in zu den ist nicht ein eine mit von es auf für sich dem auch als wie sie werden",
        "nl": "de het een en van in is dat op te zijn met voor niet aan er die als ook maar om bij naar wordt",
        "pl": "i w na z do nie się że jest to o jak ale po co za od przez dla są oraz tym może tak który",
        "vi": "và của là có được cho các một không những người trong với này đã để khi đó từ như cũng về rất",
        "sw": "na ya wa kwa ni katika za la cha kuwa hii hiyo yake lakini au kama sana pia wakati watu mtu",
        "fi": "ja on ei se että oli en ovat joka mutta myös kun niin tai hän ole kuin sen voi tämä ovat jos",
        "sv": "och i att det som en på är av för med den till inte om ett har de från vi kan men också",
        "tr": "ve bir bu da de için ile çok daha olarak gibi ne var olan ama en her değil kadar sonra",
    },
    "CYRILLIC": {
        "ru": "и в не на что он с как это по но из у за от так для мы вы был если или ы э",
        "uk": "і в не на що він з як це по але із у за від так для ми ви був якщо або є та їх",
        "bg": "и в не на че той с като това по но от за така ние вие беше ако или е са да се",
    },
    "ARABIC": {
        "ar": "في من على إلى أن هذا هذه التي الذي مع عن كان هو هي لا ما كل",
        "fa": "در از به که این است را با برای آن می های یک خود شد بود ها و",
        "ur": "میں کے کی ہے سے اور کو کا نے پر یہ ہیں ایک بھی کہ نہیں",
    },
    "DEVANAGARI": {
        "hi": "है के में की से को और का यह हैं पर ने एक भी कि नहीं था लिए हो",
        "mr": "आहे आणि या च्या मध्ये ते हे एक आहेत होते नाही पण तो ती साठी",
        "ne": "छ र को मा छन् यो हो लागि पनि गर्न भने एक थियो हुन्छ गरेको",
    },
}  # fmt: skip
"""Script -> language -> frequent words."""

_LETTERS: Mapping[str, Mapping[str, str]] = {
    "CYRILLIC": {"ru": "ыэё", "uk": "іїєґ", "bg": ""},
    "ARABIC": {"ar": "ةىإأؤ", "fa": "پژگچ", "ur": "ٹڈڑںےھہ"},
    "LATIN": {"de": "äöüß", "es": "ñ¿¡", "pt": "ãõ", "pl": "łąęśżźć", "vi": "đơưạảấầậ", "sv": "å", "tr": "ğışİ"},
}
"""Script -> language -> letters that few of the others have."""

UNDECIDED = "?"
"""The language of a text that has no evidence of one, or equal evidence of several."""


def main_script(text: str) -> str | None:
    """Return the most frequent script of a text, e.g. `LATIN`; None if the text has no letters.

    Args:
        text: The text. Kana make a text Japanese, since Japanese has Han characters too.
    """
    scripts = Counter(
        unicodedata.name(character, "?").split(" ")[0].split("-")[0] for character in text if character.isalpha()
    )
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if kana and kana >= 0.1 * scripts["CJK"]:
        scripts["HIRAGANA"] += scripts.pop("CJK", 0) + scripts.pop("KATAKANA", 0)
    return max(scripts, key=lambda name: scripts[name]) if scripts else None


def detect_language(text: str) -> str | None:
    """Return the most likely language of a text, as ISO 639-1; `UNDECIDED`; or None if the text has no letters.

    Args:
        text: The text. Its most frequent script counts, so that names in other scripts do not change the result.
    """
    script = main_script(text)
    if script is None:
        return None
    if script not in _WORDS:
        return _LANGUAGE_OF_SCRIPT.get(script, UNDECIDED)
    words = Counter(re.findall(r"[^\W\d_]+(?:[\u0900-\u0963]+[^\W\d_]*)*", text.lower()))
    known = {language: set(frequent.split()) for language, frequent in _WORDS[script].items()}
    shared = Counter(word for frequent in known.values() for word in frequent)
    hits = {
        language: sum(words[word] / shared[word] for word in frequent if word in words)
        for language, frequent in known.items()
    }
    for language, letters in _LETTERS.get(script, {}).items():
        hits[language] += 0.5 * sum(text.lower().count(letter) for letter in letters)
    most = max(hits.values())
    best = [language for language, count in hits.items() if math.isclose(count, most)]
    return best[0] if most and len(best) == 1 else UNDECIDED
