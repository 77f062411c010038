"""Everything that turns finished (or growing) text into numbers."""

import importlib
from typing import TYPE_CHECKING, Any

from reward_models.answers import EditSimilarity as EditSimilarity
from reward_models.answers import ExactMatch as ExactMatch
from reward_models.answers import TokenF1 as TokenF1
from reward_models.cache import Cached as Cached
from reward_models.coherence import Coherence as Coherence
from reward_models.composite import Composable as Composable
from reward_models.composite import WeightedSum as WeightedSum
from reward_models.composite import as_reward as as_reward
from reward_models.corpus import corpus_scores as corpus_scores
from reward_models.factual import Factual as Factual
from reward_models.instructions import Instructions as Instructions
from reward_models.judge import AsyncJudge as AsyncJudge
from reward_models.keywords import BannedWords as BannedWords
from reward_models.keywords import KeywordCoverage as KeywordCoverage
from reward_models.metrics import Rouge as Rouge
from reward_models.metrics import RougeMean as RougeMean
from reward_models.neighbours import conversational as conversational
from reward_models.neighbours import from_rl4lms as from_rl4lms
from reward_models.neighbours import to_trl as to_trl
from reward_models.normalise import Normalise as Normalise
from reward_models.pointwise import Clip as Clip
from reward_models.pointwise import Gate as Gate
from reward_models.pointwise import Product as Product
from reward_models.pointwise import Ratio as Ratio
from reward_models.rules import Distinct as Distinct
from reward_models.rules import JsonFormat as JsonFormat
from reward_models.rules import Length as Length
from reward_models.rules import RegexMatch as RegexMatch
from reward_models.sentiment import LexiconSentiment as LexiconSentiment
from reward_models.shaping import PotentialDifference as PotentialDifference
from reward_models.shaping import PotentialShaping as PotentialShaping
from reward_models.shaping import Spread as Spread
from reward_models.translation import Bleu as Bleu
from reward_models.translation import Chrf as Chrf
from reward_models.translation import Meteor as Meteor
from reward_models.translation import Ter as Ter

if TYPE_CHECKING:
    from reward_models.classifier import Classifier as Classifier
    from reward_models.discriminator import Discriminator as Discriminator
    from reward_models.discriminator import DiscriminatorConfig as DiscriminatorConfig
    from reward_models.encoder import BertScore as BertScore
    from reward_models.encoder import SemanticSimilarity as SemanticSimilarity
    from reward_models.language_model import ConditionalLikelihood as ConditionalLikelihood
    from reward_models.language_model import Fluency as Fluency
    from reward_models.language_model import Perplexity as Perplexity
    from reward_models.preference import RewardEnsemble as RewardEnsemble
    from reward_models.preference import RewardModel as RewardModel

_WITH_TORCH = {
    "BertScore": "reward_models.encoder",
    "Classifier": "reward_models.classifier",
    "ConditionalLikelihood": "reward_models.language_model",
    "Discriminator": "reward_models.discriminator",
    "DiscriminatorConfig": "reward_models.discriminator",
    "Fluency": "reward_models.language_model",
    "Perplexity": "reward_models.language_model",
    "RewardEnsemble": "reward_models.preference",
    "RewardModel": "reward_models.preference",
    "SemanticSimilarity": "reward_models.encoder",
}
"""Rewards that hold a model, imported when they are asked for: counting words needs no torch."""

__all__ = [
    "AsyncJudge",
    "BannedWords",
    "BertScore",
    "Bleu",
    "Cached",
    "Chrf",
    "Classifier",
    "Clip",
    "Coherence",
    "Composable",
    "ConditionalLikelihood",
    "Discriminator",
    "DiscriminatorConfig",
    "Distinct",
    "EditSimilarity",
    "ExactMatch",
    "Factual",
    "Fluency",
    "Gate",
    "Instructions",
    "JsonFormat",
    "KeywordCoverage",
    "Length",
    "LexiconSentiment",
    "Meteor",
    "Normalise",
    "Perplexity",
    "PotentialDifference",
    "PotentialShaping",
    "Product",
    "Ratio",
    "RegexMatch",
    "RewardEnsemble",
    "RewardModel",
    "Rouge",
    "RougeMean",
    "SemanticSimilarity",
    "Spread",
    "Ter",
    "TokenF1",
    "WeightedSum",
    "as_reward",
    "conversational",
    "corpus_scores",
    "from_rl4lms",
    "to_trl",
]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'reward_models' has no attribute '{name}'")
    return getattr(importlib.import_module(_WITH_TORCH[name]), name)
