"""Profiles, conversations, turns and states in one SQLite file; all SQL of the project is in this package.

Modules, from the bottom: `errors`, `ids`, `records` (the nouns), `migrations`, `database` (the open file), `locks`,
then one per noun: `profiles`, `conversations`, `states`, `turns`, and one per operation: `search`, `reset`, `bundle`
(copies), `manifest` and `portable` (one file to carry away), `fingerprints`. Functions take the open Store first.
"""
