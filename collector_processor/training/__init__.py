"""Offline: models trained from recordings, the general model that ships, and the folder that models are promoted in."""
