"""Invents conversations that state facts and questions about them later; knows nothing of models or tokens."""

from deltamem_cli.episodes.episode import Episode, Fact, Question, Utterance, generate_episode
from deltamem_cli.episodes.split import HELD_OUT, TRAIN, VALIDATION

__all__ = ["HELD_OUT", "TRAIN", "VALIDATION", "Episode", "Fact", "Question", "Utterance", "generate_episode"]
