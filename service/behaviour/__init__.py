"""Behaviour: events of readers in, notes that are read together out."""
