"""Whole models, each built from its configuration."""

from moekit.models.attention_seq2seq import GRUSeq2Seq
from moekit.models.decoder import Decoder
from moekit.models.encoder import Encoder
from moekit.models.encoder_decoder import EncoderDecoder
from moekit.models.language_model import LanguageModel
from moekit.models.load_model import MODELS, build, check_there, config_of, find, load
from moekit.models.ngram import NGram
from moekit.models.recurrent import LSTMLanguageModel
from moekit.models.seq2seq import LSTMSeq2Seq
from moekit.models.xlnet import XLNet

__all__ = [
    "MODELS",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "GRUSeq2Seq",
    "LSTMLanguageModel",
    "LSTMSeq2Seq",
    "LanguageModel",
    "NGram",
    "XLNet",
    "build",
    "check_there",
    "config_of",
    "find",
    "load",
]
