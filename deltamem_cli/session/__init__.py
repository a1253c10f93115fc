"""A chat that remembers: engine and store put together. Prints nothing.

Modules, from the bottom: `thinking` (what is thought and what is answered), `prompt` (what the template puts around
messages), `spans` (what is written together), `window` (what the model sees), `reply` and `records` (of one turn),
`exchange` (a turn on its way through the model), `recent` (turns to show again), `replay` (the same turns again),
`forgetting` (without some), `chat` (a conversation being held), `opening` (which model, which conversation).
"""
