"""Networks that read a history of items and score all items of a catalogue: one file a system."""
