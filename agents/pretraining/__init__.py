"""Pretraining on the user's own texts, by likelihood or with human preferences."""

from agents.pretraining.run import Pretrained as Pretrained
from agents.pretraining.run import pretrain as pretrain
