"""Conversations in the seats of one engine, and the turns in them. Knows no HTTP."""
