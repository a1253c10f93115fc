"""A chat that remembers: engine and store put together. Prints nothing.

Modules, from the bottom: `prompt` (what the template puts around messages), `spans` (what is written together),
`window` (what the model sees), `chat` (turns), `replay` (the same turns again), `opening` (which conversation, which model).
"""
