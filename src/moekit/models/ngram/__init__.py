"""N-gram models with modified interpolated Kneser-Ney smoothing, counted in bounded memory, in ARPA files."""

from moekit.models.ngram.ngram_model import NGram, load_arpa
from moekit.models.ngram.vocabulary import Vocabulary, byte_vocabulary

__all__ = ["NGram", "Vocabulary", "byte_vocabulary", "load_arpa"]
