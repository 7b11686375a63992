"""Behaviour: derives which notes are read together from the events of readers."""
