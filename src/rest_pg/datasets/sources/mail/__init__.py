"""Mail as raw documents: what a person wrote in a message, without what they quoted or signed with."""

from rest_pg.datasets.sources.mail.dataset import MailDataset
from rest_pg.datasets.sources.mail.message import read_message
from rest_pg.datasets.sources.mail.own_words import own_words

__all__ = ["MailDataset", "own_words", "read_message"]
