"""Others' words are left out of a message, and the sender's own are kept: each kind, in many languages."""

import pytest

from rest_pg.datasets.sources.mail import own_words, read_message

ATTRIBUTIONS = [
    "On Fri, Jan 5, 2024 at 12:32 PM Robert L <rob@example.org> wrote:",
    "On Fri, Jan 5, 2024 at 12:32 PM Robert Longname\nExampleton Middle\n<robert@example.org> wrote:",
    "On 01/05/2024 12:32 PM, Robert wrote:",
    "On Monday we wrote:",
    "Bob wrote:",
    "Bob Smith <bob@example.org> writes:",
    "In article <1@example.org>, Bob wrote:",
    "* Bob <bob@example.org> [2024-01-05 12:32]:",
    "Quoting Bob <bob@example.org>:",
    "Am Fr., 5. Jan. 2024 um 12:32 Uhr schrieb Bob <\nbob@example.org>:",
    "Am 05.01.2024 um 12:32 schrieb Bob:",
    "Bob <bob@example.org> schrieb am Fr., 5. Jan. 2024, 12:32:",
    "Le ven. 5 janv. 2024 à 12:32, Bob <bob@example.org> a écrit :",
    "Le 5 janv. 2024 à 12:32, Bob a\xa0écrit\xa0:",
    "El vie, 5 ene 2024 a las 12:32, Bob (<bob@example.org>) escribió:",
    "Il giorno ven 5 gen 2024 alle ore 12:32 Bob <bob@example.org> ha\nscritto:",
    "Op vr 5 jan 2024 om 12:32 schreef Bob <bob@example.org>:",
    "Em sex., 5 de jan. de 2024 às 12:32, Bob <bob@example.org> escreveu:",
    "пт, 5 янв. 2024 г. в 12:32, Bob <bob@example.org>:",
    "05.01.2024 12:32, Боб пишет:",
    "pt., 5 sty 2024 o 12:32 Bob <bob@example.org> napisał(a):",
    "W dniu 05.01.2024 o 12:32, Bob pisze:",
    "Den fre 5 jan. 2024 kl 12:32 skrev Bob <bob@example.org>:",
    "fre. 5. jan. 2024 kl. 12:32 skrev Bob <bob@example.org>:",
    "pe 5. tammik. 2024 klo 12.32 Bob (bob@example.org) kirjoitti:",
    "2024年1月5日(金) 12:32 Bob <bob@example.org>:",
    "Bob <bob@example.org> 于2024年1月5日周五 12:32写道：",
    "在 2024年1月5日，12:32，Bob <bob@example.org> 写道：",
    "2024년 1월 5일 (금) 오후 12:32, Bob <bob@example.org>님이 작성:",
]
OLDER = [
    "From: Bob <bob@example.org>\nSent: Monday, January 1, 2024 10:00 AM\nTo: Ann\nSubject: pier",
    "*From:* Bob\n*Sent:* Monday\n*To:* Ann\n*Subject:* pier",
    "________________________________\nFrom: Bob <b@example.org>\nSent: Monday\nTo: Ann; Eve <e@example.org>;\n"
    "Carl <c@example.org>\nCc: Dan\nSubject: pier",
    "Von: Bob\nGesendet: Montag\nAn: Ann\nBetreff: Pier",
    "De : Bob\nEnvoyé : lundi\nÀ : Ann\nObjet : jetée",
    "De: Bob\nEnviado el: lunes\nPara: Ann\nAsunto: muelle",
    "De: Bob\nEnviada em: segunda\nPara: Ann\nAssunto: cais",
    "Da: Bob\nInviato: lunedì\nA: Ann\nOggetto: molo",
    "Van: Bob\nVerzonden: maandag\nAan: Ann\nOnderwerp: pier",
    "От: Bob\nОтправлено: понедельник\nКому: Ann\nТема: пирс",
    "Från: Bob\nSkickat: måndag\nTill: Ann\nÄmne: pir",
    "Fra: Bob\nSendt: mandag\nTil: Ann\nEmne: mole",
    "Od: Bob\nWysłano: poniedziałek\nDo: Ann\nTemat: molo",
    "发件人：Bob\n发送时间：星期一\n收件人：Ann\n主题：码头",
    "差出人: Bob\n送信日時: 月曜日\n宛先: Ann\n件名: 桟橋",
    "-----Original Message-----\nFrom: Bob\nSent: Monday\nTo: Ann\nSubject: pier",
    "-----Ursprüngliche Nachricht-----\nVon: Bob",
    "-----Message d'origine-----\nDe : Bob",
    "-----Исходное сообщение-----",
    "-----原始邮件-----",
    "-------- Weitergeleitete Nachricht --------\nBetreff: Pier",
    "---------- Forwarded message ---------\nFrom: Bob <b@example.org>\nDate: Mon\nSubject: pier\nTo: Ann",
    "----- Forwarded by Bob Smith/HOU/ECT on 01/02/2001 10:00 AM -----",
    "Begin forwarded message:\n\nFrom: Bob",
    "Bob Smith\n01/02/2001 10:00 AM\nTo: Ann Smith/HOU/ECT@ECT\ncc: \nSubject: Re: pier",
    "---- On Fri, 05 Jan 2024 12:32:00 +0100 Bob <bob@example.org> wrote ----",
    "On Jan 5, 2024, at 12:32, Bob <bob@example.org> wrote:",
]


@pytest.mark.parametrize("attribution", ATTRIBUTIONS)
@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_an_attribution_goes_with_its_quotation(attribution: str, gap: str) -> None:
    text = f"My own words.\n\n{attribution}{gap}> theirs\n>> older\n\nMine below."
    assert own_words(text) == "My own words.\n\nMine below."
    assert own_words(f"{attribution}{gap}> theirs\n\nMine below.") == "Mine below."


@pytest.mark.parametrize("older", OLDER)
def test_an_older_message_is_left_out(older: str) -> None:
    assert own_words(f"My own words.\n\n{older}\n\nBOB WROTE THIS.\n\nBob") == "My own words."
    quoted = f"My own words.\n\n{older}\n\n> BOB WROTE THIS.\n\nMine below."
    assert own_words(quoted) == "My own words.\n\nMine below."


@pytest.mark.parametrize(
    "text",
    [
        "On the whole I agree with what Mr Smith wrote:\nthe pier should open.\nAnd this too.",
        "On 3 January 2024 Mr Smith wrote:\nthe pier is open",
        "Here is what I said:\nall of it",
        "From here on it is mine.",
        "From: Berlin\nTo: Paris\nDate: Monday\nBuy tickets",
        "To: all of you\nthanks",
        "Subject: what I think\nmine",
        "------ Chapter 2 ------\nmine",
        "This is the original message to Bob.",
        "_____________\nmine",
        "the pier -- our pier -- is open",
        "mine:\n- one\n- two",
        "--\n" + "\n".join(f"paragraph {n}" for n in range(12)),
        "5 > 4 and 3\nmine",
        "Meine Zeilen.\n\nVon hier an: alles\nAn alle: danke",
    ],
)
def test_own_lines_that_look_like_others_are_kept(text: str) -> None:
    assert own_words(text) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("> q\nmine 1\n> q\n>> q\nmine 2\n> q\n\nmine 3", "mine 1\nmine 2\n\nmine 3"),
        ("I agree with what you wrote:\n> q\nmine", "I agree with what you wrote:\nmine"),
        ("mine\n-- \nAnn\nHarbour Office", "mine"),
        ("mine\n--\nAnn", "mine"),
        ("mine\n\n-- \nAnn\n\nOn 5 Jan 2024 Bob wrote:\n> q\n\nmine too", "mine\n\nmine too"),
        ("mine\n\nSent from my iPhone", "mine"),
        ("mine\n\nVon meinem iPhone gesendet", "mine"),
        (f"mine\n{'_' * 47}\nPier mailing list\nPier@example.org", "mine"),
        (
            "mine\n-------------- next part --------------\nAn HTML attachment was scrubbed...\nURL: <x>",
            "mine",
        ),
        (
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\nmine\n-----BEGIN PGP SIGNATURE-----\nx\n"
            "-----END PGP SIGNATURE-----",
            "mine",
        ),
        ("> theirs", ""),
    ],
)
def test_kinds_of_lines(text: str, kept: str) -> None:
    assert own_words(text) == kept


def page(html: str) -> str:
    head = b"From: ann@example.org\nContent-Type: text/html; charset=utf-8\n\n"
    record = read_message(head + html.encode(), "s", "i")
    assert "unreadable" not in record
    return str(record.get("text", ""))


@pytest.mark.parametrize(
    ("html", "kept"),
    [
        ("<div>Mine.</div><blockquote type=cite>theirs</blockquote><p>below</p>", "Mine.\nbelow"),
        (
            '<div>Mine.</div><div class="gmail_quote"><div class="gmail_attr">On Monday Bob wrote:<br></div>'
            "<blockquote class=gmail_quote>q1</blockquote>mine too<blockquote>q2</blockquote></div>",
            "Mine.\nmine too",
        ),
        ('Mine.<div class="gmail_quote">On Monday Bob wrote:<br>theirs</div>', "Mine."),
        (
            'Mine.<div class="gmail_quote"><div class="gmail_attr">---------- Forwarded message ---------<br>'
            "From: Bob</div>theirs<blockquote>older</blockquote>theirs too</div>",
            "Mine.",
        ),
        (
            "Mine.<div id=appendonsend></div><hr><div id=divRplyFwdMsg>From: Bob</div>theirs",
            "Mine.",
        ),
        ('Mine.<div class="OutlookMessageHeader">From: Bob</div><p>theirs', "Mine."),
        (
            '<p>Mine.</p><div style="border:none;border-top:solid #E1E1E1 1.0pt"><p><b>Lähettäjä:</b> Bob<br>'
            "<b>Päivä:</b> ma<br><b>Aihe:</b> x</p></div><p>theirs</p>",
            "Mine.",
        ),
        (
            "<p>Mine.</p><p><b>From:</b> Bob<br><b>Sent:</b> M<br><b>To:</b> A<br><b>Subject:</b> x</p>theirs",
            "Mine.",
        ),
        (
            '<div>Mine.</div><div class="moz-cite-prefix">5.1.2024 Bob:</div><blockquote>q</blockquote>',
            "Mine.",
        ),
        (
            '<p>Mine.</p><div class="gmail_signature">Ann</div><div id="Signature">Ann</div>',
            "Mine.",
        ),
        (
            '<p>Mine.</p><blockquote style="margin:0 0 0 40px;border:none;padding:0">indented</blockquote>',
            "Mine.\nindented",
        ),
        ('<div class="x_yahoo_quoted">theirs</div>mine', "mine"),
        (
            "<p>one\n two&nbsp;three<br><br>four <!-- no > words --><script>x()</script></p>",
            "one two three\n\nfour",
        ),
        ("<p>broken <b>tags</p></i><div>and < signs & all", "broken tags\nand < signs & all"),
        ('<div style="display:none">preview</div>mine', "mine"),
    ],
)
def test_pages(html: str, kept: str) -> None:
    assert page(html) == kept
