"""Training of MUFIN on a catalogue: the only place in mufin with torch."""
