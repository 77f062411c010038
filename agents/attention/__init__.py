"""What every token of a text looks at."""

from agents.attention.weights import TextAttention as TextAttention
from agents.attention.weights import attention as attention
