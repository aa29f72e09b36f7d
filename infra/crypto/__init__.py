"""Keys and what is sealed with them: envelopes, the keyring, master keys and their rotation."""
