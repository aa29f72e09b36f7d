"""Envelope encryption, the keyring, and master keys with their rotation."""
