from .reader import StoredTokens as StoredTokens
from .writer import StoredRow as StoredRow, TokenWriter as TokenWriter
