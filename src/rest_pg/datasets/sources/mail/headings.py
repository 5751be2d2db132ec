"""Words of mail programs, in many languages: header fields, separators, and who wrote."""

from __future__ import annotations

import re

_FIELDS = {
    "from": "from von de da van från fra od от від 发件人 寄件者 寄件人 差出人 送信者 보낸사람 mittente remetente"
    " lähettäjä kimden feladó από מאת من",
    "sent": "sent date gesendet datum envoyé inviato data enviado fecha verzonden skickat sendt dato lähetetty"
    " päivämäärä wysłano отправлено дата надіслано 发送时间 发送日期 日期 傳送日期 寄件日期 送信日時 日時 보낸날짜 보낸시간 날짜"
    " odesláno gönderildi tarih dátum elküldve ημερομηνία נשלח تاريخ",
    "to": "to an à a para aan till til do кому 收件人 收件者 宛先 받는사람 vastaanottaja komu kime címzett προς אל إلى"
    " destinatario",
    "cc": "cc bcc kopie kopia kopi копия копія 抄送 副本 참조 dw kopio másolat κοιν",
    "subject": "subject betreff objet oggetto asunto assunto onderwerp ämne emne temat тема 主题 主旨 件名 제목 předmět"
    " aihe konu tárgy θέμα נושא الموضوع sujet re",
}
_PHRASES = {
    "enviado el": "sent",
    "enviada em": "sent",
    "enviado em": "sent",
    "envoyé le": "sent",
    "data wysłania": "sent",
    "보낸 사람": "from",
    "보낸 날짜": "sent",
    "받는 사람": "to",
    "reply to": "cc",
    "reply-to": "cc",
    "gesendet am": "sent",
    "inviato il": "sent",
    "verzonden op": "sent",
    "от кого": "from",
}
FIELDS = {word: kind for kind, words in _FIELDS.items() for word in words.split()} | _PHRASES
"""A header field as mail programs write it above a quoted message, case-folded, and what it is."""

_MESSAGE = (
    r"message|messages|nachricht|e-?mail|mail|mensaje|mensagem|messaggio|bericht|meddelelse|meddelande|melding"
    r"|wiadomość|wiadomosc|сообщение|сообщения|письмо|повідомлення|邮件|郵件|メッセージ|메시지|viesti|ileti|üzenet|zpráva|μήνυμα"
)
_KIND = (
    r"original\w*|ursprüngliche\w*|ursprungligt|oprindelig\w*|opprinnelig\w*|oorspronkelijk\w*|alkuperäinen|d.origine"
    r"|originale|исходное|пересланное|пересылаемое|oryginalna|původní|原始|元の|원본|orijinal|eredeti|αρχικό"
    r"|forwarded|weitergeleitete\w*|transféré|réexpédié|reenviado|encaminhada|reencaminhada|inoltrato|doorgestuurd\w*"
    r"|videresendt|vidarebefordrat|przesłana|přeposlaná|välitetty|转发\w*|轉寄\w*|転送\w*|전달된|iletilen|továbbított"
)
SEPARATORS = re.compile(
    rf"[ \t]*(?:[-_=*]{{2,40}}[ \t]*(?:(?:{_KIND})[ \t]?\w{{0,12}}[ \t]?(?:{_MESSAGE})|(?:{_MESSAGE})\w{{0,4}}[ \t]?(?:{_KIND})"
    rf"|(?:转发|轉寄|原始|转发的|転送|元の)(?:{_MESSAGE}))[^\n]{{0,40}}?[-_=*]{{2,40}}"
    r"|[-_=*]{2,40}[ \t]*(?:forwarded by|weitergeleitet von|original message (?:from|follows)|transféré par)\b.{0,120}"
    r"|-{5,40}[ \t]?(?:forwarded|weitergeleitet|transféré|reenviado|inoltrato|переслано)[ \t]?-{5,40}"
    r"|-{2,40}[ \t].{0,200}<[^<>\s]{1,100}@[^<>\s]{1,100}>.{0,60}[ \t]-{2,40}"
    r"|(?:begin forwarded message|anfang der weitergeleiteten (?:nachricht|e-mail)|début du message (?:réexpédié|transféré)"
    r"|inizio messaggio inoltrato|inicio del mensaje reenviado|begin doorgestuurd bericht"
    r"|início da mensagem (?:reencaminhada|encaminhada)|vidarebefordrat (?:brev|meddelande)|videresendt (?:besked|melding)"
    r"|начало (?:переадресованного|пересланного|переадресуемого) (?:сообщения|письма)|początek przekazanej wiadomości"
    r"|开始转发的邮件|轉寄的郵件|転送されたメッセージ|전달된 메시지 시작)[ \t]?[:：])[ \t]*\Z",
    re.IGNORECASE,
)
"""A line of its own below which an older message stands."""

WROTE = re.compile(
    r"\b(?:wrote|writes|said|schrieb|schreibt|a écrit|écrit|écrivait|escribió|escribio|escreveu|ha scritto|scrive|scrisse"
    r"|schreef|skrev|skriver|kirjoitti|napisał\w*|napisal\w*|pisze|nadesłał\w*|написала?|пишет|пише|написав|napsala?|yazdı"
    r"|írta|ezt írta|a scris|έγραψε|quoting|zitat von)\b|写道|寫道|写到|写了|のメール|書きました|さんは|작성|썼습니다|כתב|كتب",
    re.IGNORECASE,
)
"""Who wrote, in an attribution."""
