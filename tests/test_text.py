"""Words, counts and measures of texts in many scripts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from rest_pg.backends.rewards import Measures
from rest_pg.metrics import is_degenerate, measure_response
from rest_pg.pipelines.data_ingestion.examples import cut_opening
from rest_pg.rouge import UnicodeTokenizer
from rest_pg.text import (
    content_words,
    copied_share,
    count_words,
    ngrams,
    sentences,
    tokens,
    word_ends,
    words,
)

# two texts each without a common word, and of equally many words
PAIRS = {
    "russian": ("Гавань снова открыта для судов", "мы чинили старый мост весной"),
    "greek": ("Το λιμάνι άνοιξε ξανά χθες", "εμείς φτιάξαμε μια παλιά γέφυρα"),
    "arabic": ("الميناء مفتوح من جديد اليوم", "أصلحنا جسرا قديما في الربيع"),
    "hindi": ("बंदरगाह फिर से खुल गया", "हमने पुराना पुल ठीक किया"),
    "korean": ("항구가 오늘 다시 문을 열었다", "우리는 봄에 낡은 다리를 고쳤다"),
    "hebrew": ("הנמל נפתח שוב היום בבוקר", "תיקנו גשר ישן באביב האחרון"),
    "chinese": ("港口今天重新开放", "我们修好那座旧桥"),
    "japanese": ("港が今日また開いた", "ぼくら古橋を直せり"),
    "thai": ("นกบิน", "หมูมอง"),
    "accented": ("Le café déjà ouvert là-bas", "nous réparâmes trois ponts âgés"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_measures_see_every_script(name: str) -> None:
    text, other = PAIRS[name]
    same, disjoint = measure_response(text, text, []), measure_response(other, text, [])
    assert [same[k] for k in ("rouge_1", "rouge_2", "rouge_l")] == [1, 1, 1]
    assert same["meteor"] > 0.9
    assert [disjoint[k] for k in ("rouge_1", "rouge_2", "rouge_l", "meteor")] == [0, 0, 0, 0]
    # the text and as many other words: recall 1, precision by the numbers of words
    both = measure_response(f"{text}. {other}", text, [])
    precision = len(tokens(text)) / (len(tokens(text)) + len(tokens(other)))
    assert both["rouge_1"] == pytest.approx(2 * precision / (1 + precision))
    assert both["rouge_l"] == both["rouge_1"]


def test_the_default_reward_sees_every_script() -> None:
    measures = Measures(["rouge_1", "rouge_l"])
    for text, other in PAIRS.values():
        same, disjoint = measures.measure([(text, text), (other, text)])
        assert same == {"rouge_1": 1, "rouge_l": 1}
        assert disjoint == {"rouge_1": 0, "rouge_l": 0}


@pytest.mark.parametrize("name", PAIRS)
def test_loops_are_found_in_every_script(name: str) -> None:
    text, other = PAIRS[name]
    assert is_degenerate(f"{text}. " * 12)
    assert not is_degenerate(f"{text}. {other}.")


NORMAL = {
    "chinese": "人工智能改变了港口。人工智能帮助船长，也帮助工人。有人担心人工智能，有人相信人工智能。去年春天，城里的"
    "旧桥修好了，孩子们每天从桥上走过，看远处的灯塔和归来的渔船。",
    "japanese": "コンピューターは港で使われている。古いコンピューターも、新しいコンピューターも、人がコンピューターに教える。"
    "春には橋が直り、子供たちは毎日その橋を渡って学校へ行く。",
    "russian": "Гавань снова открыта. В гавань вошли суда, и в гавань пришли люди. Мост починили весной, а гавань осталась прежней.",
}


@pytest.mark.parametrize("name", NORMAL)
def test_a_text_that_repeats_a_name_does_not_loop(name: str) -> None:
    assert not is_degenerate(NORMAL[name])


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_tokens_are_those_of_the_package(text: str) -> None:
    assert UnicodeTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)
    assert count_words(text) == len(text.split()) == len(list(word_ends(text)))


@given(st.lists(st.sampled_from(["don't", "harbours", "—", "“open”", "42", "…", "a_b", "½"])))
def test_other_punctuation_changes_no_token(parts: list[str]) -> None:
    text = " ".join(parts)
    assert UnicodeTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


def test_words_of_scripts_with_marks_are_whole() -> None:
    assert tokens("naïve Café") == ["naïve", "café"]
    assert tokens("cafe\u0301") == tokens("CAFÉ") == ["café"]
    assert words("हिन्दी की किताबें") == ["हिन्दी", "की", "किताबें"]
    assert words("می\u200cخواهم کتاب") == ["می\u200cخواهم", "کتاب"]
    assert words("c'est l\u2019été") == ["c'est", "l\u2019été"]
    assert words("港口open了") == ["港", "口", "open", "了"]
    assert tokens("co\xadoperate") == ["cooperate"]


@given(st.text(), st.text())
def test_counts_add_up_and_openings_lose_nothing(first: str, second: str) -> None:
    assert count_words(f"{first} {second}") == count_words(first) + count_words(second)
    assert list(word_ends(first)) == sorted(set(word_ends(first)))
    assert len(list(word_ends(first))) == count_words(first)
    opening, rest = cut_opening(first, 2)
    assert "".join((opening + rest).split()) == "".join(first.split())


def test_characters_count_where_there_are_no_spaces() -> None:
    assert count_words("港口又开放了，船只来来往往。") == 12
    assert count_words("第 3 章 iPhone很好") == 6
    assert cut_opening("港口又开放了，船只来来往往。", 6) == ("港口又开放了，", "船只来来往往。")


def test_ngrams_are_as_long_as_words() -> None:
    assert list(ngrams(list("abcde"), 4)) == [tuple("abcd"), tuple("bcde")]
    assert list(ngrams(list("一二三四五"), 2)) == [tuple("一二三四"), tuple("二三四五")]
    assert list(ngrams(["a", "一", "二", "b"], 2)) == [("a", "一", "二"), ("一", "二", "b")]
    text = "港口今天重新开放，船只来来往往，孩子们在岸上看着归来的渔船。"
    assert copied_share(text, f"昨天有人说：{text}") == 1
    assert copied_share(text, "我们去年春天修好那座旧桥，现在每天都有人从桥上走过，非常方便。") == 0


def test_sentences_and_content_words_of_other_scripts() -> None:
    assert sentences("港开了。船来了！“好吗？”他问。") == [
        "港开了。",
        "船来了！",
        "“好吗？”",
        "他问。",
    ]
    assert sentences("जहाज आते हैं। पुल खुला है।") == ["जहाज आते हैं।", "पुल खुला है।"]
    assert "港口" in content_words("港口又开放了")
    assert content_words("बंदरगाह 2024 है") == ["बंदरगाह"]
    assert content_words("コンピューターで") == ["コンピューター"]
