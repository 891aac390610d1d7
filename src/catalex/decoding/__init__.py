"""From a trained model and a catalogue's index to ranked items: trie, beam search, and a slow reference."""

from catalex.decoding.batches import search_all
from catalex.decoding.beam import Decoded, Precision, beam_search
from catalex.decoding.trie import ABSENT, Trie

__all__ = ["ABSENT", "Decoded", "Precision", "Trie", "beam_search", "search_all"]
